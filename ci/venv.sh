#!/usr/bin/env bash
# The environment: a virtual environment with the pinned packages and this checkout as an editable install.
# Runs again at no cost: a stamp in the environment remembers what it was made from.  Writes nothing into the checkout
# but the environment itself.
#   ci/venv.sh                    settings: VENV=folder (.venv), PYTHON=interpreter, EXTRAS=extras of pyproject.toml
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$here/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
stamp=$venv/multirecon.stamp
extras=${EXTRAS:-dev,data,io,interop,zoo}
# extras once added (`make peers`) stay
for extra in $([ -f "$stamp" ] && sed -n 2p "$stamp" | tr ',' ' ' || true); do
    case ",$extras," in *",$extra,"*) ;; *) extras=$extras,$extra ;; esac
done
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1
unset PYTHONHOME PYTHONPATH

wanted() {  # what the environment is made from; cksum is everywhere, and this guards against staleness, not malice
    printf '%s\n' "$here" "$extras"
    cksum <"$here/pyproject.toml"
    cksum <"$here/ci/constraints.txt"
}
made=""
[ -f "$stamp" ] && made=$(cat "$stamp")
have=""
"$venv/bin/python" -c '' >/dev/null 2>&1 && have=yes
if [ -n "$have" ] && [ "$made" = "$(wanted)" ]; then
    exit 0
fi

python=$(bash "$here/ci/preflight.sh" "$venv")
if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    echo "venv: $venv is a folder with other content, not a virtual environment; choose another with VENV=/path" >&2
    exit 1
fi
if [ -z "$have" ]; then
    echo "venv: making $venv with $("$python" -V) (a download of about 3 GB the first time)"
    "$python" -m venv --clear "$venv"
fi
rm -f "$stamp"

# setuptools would leave its egg-info beside the sources: send it to a scratch folder, so the checkout may be read-only
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/egg"
printf '[egg_info]\negg_base = %s\n' "$scratch/egg" >"$scratch/setup.cfg"
progress=on
[ -t 1 ] || progress=off
pip() { "$venv/bin/python" -m pip "$@"; }
cd "$here"
pip install --quiet --progress-bar "$progress" -c ci/constraints.txt setuptools
DIST_EXTRA_CONFIG="$scratch/setup.cfg" \
    pip install --quiet --progress-bar "$progress" -c ci/constraints.txt --no-build-isolation -e ".[$extras]"
pip check
wanted >"$stamp"
echo "venv: ready in $venv"
