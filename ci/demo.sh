#!/usr/bin/env bash
# The demonstration behind `make demo`: measurements of the embedded sample, reconstructed by stock MONAI, then a small
# comparison and its report.
#   ci/demo.sh                    settings: VENV=folder of the environment (.venv), OUT=folder for results (output)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac; }
venv=$(absolute "${VENV:-$here/.venv}")
out=$(absolute "${OUT:-output}")/demo
python=$venv/bin/python
if ! "$python" -c 'import multirecon' >/dev/null 2>&1; then
    echo "demo: no environment with multirecon in $venv (run: make venv)" >&2
    exit 1
fi
mkdir -p "$out"
export MULTIRECON_BUNDLES="$here/bundles" MPLBACKEND=Agg PYTHONNOUSERSITE=1
# MONAI warns at every run that a bundle's config is code: these are ours
export PYTHONWARNINGS="ignore::UserWarning,ignore::FutureWarning,ignore::DeprecationWarning"
# one thread is as quick as two for single slices, and does not fight with others for few cores
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
step() { printf '\n== %s ==\n' "$1"; }

reconstruct() { # TASK BUNDLE: simulate two measurements, reconstruct them with nothing but MONAI's own command
    step "$1: simulate, then reconstruct with $2"
    "$python" -m multirecon simulate "$1" "$out/$1/measurements" --limit 2
    "$python" -m monai.bundle run --config_file "$here/bundles/$2/configs/inference.json" \
        --bundle_root "$here/bundles/$2" --dataset_dir "$out/$1/measurements" --output_dir "$out/$1/$2" \
        >"$out/$1/$2.log" 2>&1 || { tail -n 20 "$out/$1/$2.log" >&2; exit 1; }
}
reconstruct flair_x4 sense_mr
reconstruct ct_sparse60 fbp_ct

step "evaluate both bundles on both tasks"
"$python" -m multirecon evaluate "$out/comparison" --tasks flair_x4,ct_sparse60 --bundles sense_mr,fbp_ct
step "report"
"$python" -m multirecon report "$out/comparison" --output "$out/report"

step "done in $SECONDS s"
find "$out" -name '*.nii.gz' | sort | sed 's/^/NIfTI  /'
find "$out" -name '*.png' | sort | sed 's/^/PNG    /'
printf 'HTML   %s\n' "$out/report/report.html"
