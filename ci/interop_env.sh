#!/usr/bin/env bash
# An environment of its own for a program that serves or packages bundles, with the pinned packages and this checkout.
#   ci/interop_env.sh label       the MONAI Label server (8 GB)
#   ci/interop_env.sh deploy      the MONAI Deploy App SDK (7 GB)
# Settings: VENV=folder (.venv-label, .venv-deploy), PYTHON=interpreter.  Prints the interpreter at the end.
# Runs again at no cost: a stamp in the environment remembers what it was made from.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
    label | deploy) name=$1 ;;
    *) echo "interop_env: expected label or deploy, got '${1:-}'" >&2; exit 2 ;;
esac
venv=${VENV:-$here/.venv-$name}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
stamp=$venv/multirecon.stamp
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1 SAM2_BUILD_CUDA=0
unset PYTHONHOME PYTHONPATH

wanted() {
    printf '%s\n' "$here" "$name"
    cksum <"$here/pyproject.toml"
    cksum <"$here/ci/constraints-$name.txt"
    cksum <"$here/ci/requirements-label.txt"
}
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    echo "$venv/bin/python"
    exit 0
fi
python=$(NEED_GB=9 bash "$here/ci/preflight.sh" "$venv")
if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    echo "interop_env: making $venv with $("$python" -V)" >&2
    "$python" -m venv --clear "$venv"
fi
rm -f "$stamp"
scratch=$(mktemp -d)  # setuptools would leave its egg-info beside the sources, and the checkout may be read-only
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/egg"
printf '[egg_info]\negg_base = %s\n' "$scratch/egg" >"$scratch/setup.cfg"
export DIST_EXTRA_CONFIG="$scratch/setup.cfg"
pip() { "$venv/bin/python" -m pip "$@" >&2; }
cd "$here"
pip install --quiet -c "ci/constraints-$name.txt" setuptools wheel
if [ "$name" = label ]; then
    # sam2 is built from source and asks for torch while it is: without isolation it finds the one that is there
    pip install --quiet -c ci/constraints-label.txt torch torchvision
    pip install --quiet -c ci/constraints-label.txt --no-build-isolation -r ci/requirements-label.txt
    pip install --quiet --no-build-isolation --no-deps -e .
    # the one disagreement that is known and harmless (see requirements-label.txt); any other ends here
    faults=$("$venv/bin/python" -m pip check | grep -v '^multirecon .* has requirement jsonschema' | grep -v '^No broken' || true)
    [ -z "$faults" ] || { echo "$faults" >&2; exit 1; }
else
    pip install --quiet -c ci/constraints-deploy.txt --no-build-isolation -e '.[deploy]'
    pip check
fi
wanted >"$stamp"
echo "$venv/bin/python"
