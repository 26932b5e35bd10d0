#!/usr/bin/env bash
# The one door: everything that must hold before a change is merged.  Runs every step, then says which failed.
#   ci/check.sh [STEP ...]        steps: ruff format mypy layers pytest (all by default); settings: VENV=folder (.venv)
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$here/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$here" || exit 1
if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    echo "check: no environment in $venv (run: make venv)" >&2
    exit 1
fi

# One thread: the same sums in the same order on every machine, and no fight for few cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1 VECLIB_MAXIMUM_THREADS=1
export PYTHONHASHSEED=0 PYTHONNOUSERSITE=1 MPLBACKEND=Agg PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
unset PYTHONHOME PYTHONPATH
# Caches live in the environment: the checkout may be read-only.
cache=$venv/cache
export RUFF_CACHE_DIR="$cache/ruff" MYPY_CACHE_DIR="$cache/mypy" HYPOTHESIS_STORAGE_DIRECTORY="$cache/hypothesis"

run_step() {
    case $1 in
        ruff) "$venv/bin/python" -m ruff check . ;;
        format) "$venv/bin/python" -m ruff format --check . ;;
        mypy) "$venv/bin/python" -m mypy ;;
        layers) "$venv/bin/lint-imports" --cache-dir "$cache/import-linter" ;;
        pytest) "$venv/bin/python" -m pytest -o cache_dir="$cache/pytest" --durations=10 ;;
        *) echo "check: unknown step '$1' (ruff format mypy layers pytest)" >&2; return 2 ;;
    esac
}
[ $# -gt 0 ] || set -- ruff format mypy layers pytest
summary="" failed="" begun=$SECONDS
for step in "$@"; do
    printf '\n== %s ==\n' "$step"
    start=$SECONDS result=ok
    run_step "$step" || { result=FAILED; failed="$failed $step"; }
    summary="$summary$(printf '%-8s %-7s %4d s' "$step" "$result" $((SECONDS - start)))"$'\n'
done
printf '\n== summary ==\n%s' "$summary"
if [ -n "$failed" ]; then
    echo "check: FAILED:$failed ($((SECONDS - begun)) s)"
    exit 1
fi
echo "check: all passed ($((SECONDS - begun)) s)"
