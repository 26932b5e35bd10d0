#!/usr/bin/env bash
# Is everything here that the environment needs?  Prints the Python to use, or one line that names what is missing.
#   ci/preflight.sh [VENV]        settings: PYTHON=interpreter to use, NEED_GB=free disk asked for (9)
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${1:-${VENV:-$here/.venv}}
need_gb=${NEED_GB:-9}
missing=""
lacks() { missing="${missing:+$missing; }$1"; }

command -v make >/dev/null 2>&1 || lacks "make (package 'make' of your system)"

# A name on the PATH may be a shim that only prints an error: a candidate counts when it runs and says the right version.
in_range='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
python="" found=""
consider() {
    local path
    while IFS= read -r path; do
        [ -n "$python" ] && return
        "$path" -c "$in_range" >/dev/null 2>&1 || continue
        found=$path
        "$path" -c 'import venv, ensurepip' >/dev/null 2>&1 && python=$path
    done < <(type -aP "$1" 2>/dev/null)
}
if [ -n "${PYTHON:-}" ]; then
    consider "$PYTHON"
else
    for name in python3.11 python3.12 python3.13 python3 python; do consider "$name"; done
fi
if [ -z "$found" ]; then
    lacks "Python 3.11, 3.12 or 3.13 (${PYTHON:+PYTHON=$PYTHON is none; }name one with PYTHON=/path/to/python3.11)"
elif [ -z "$python" ]; then
    lacks "the venv module of $found (package 'python3-venv' of your system)"
fi

parent=$venv
while [ ! -d "$parent" ] && [ "$parent" != "$(dirname "$parent")" ]; do parent=$(dirname "$parent"); done
[ -w "$parent" ] || lacks "permission to write to $parent (choose another place with VENV=/path)"
free_kb=$(df -Pk "$parent" 2>/dev/null | awk 'NR == 2 { print $4 }')
held_kb=0
[ -d "$venv" ] && held_kb=$(du -sk "$venv" 2>/dev/null | awk '{ print $1 }')
if [ -n "$free_kb" ] && [ $((free_kb + ${held_kb:-0})) -lt $((need_gb * 1024 * 1024)) ]; then
    lacks "disk space for $venv (needs about $need_gb GB, $((free_kb / 1024 / 1024)) GB are free)"
fi

if [ -n "$missing" ]; then
    echo "preflight: missing: $missing" >&2
    exit 1
fi
printf '%s\n' "$python"
