"""The measured 8-coil k-space by the diffusion priors, T1 alone measured, judged by samples held out of it.

    python ci/gallery_prior_kspace.py docs/gallery [--methods NAME[:VARIANT],...] [--level 0.6]

prints the error on the held-out samples and draws OUT/kspace_prior.png. The priors know slices of 128 x 128 pixels of
1.875 mm, so of the data (230 x 180, nominally 1 mm) the central 122 x 96 frequencies are used by every method here:
pixels of 1.885 x 1.875 mm, taken for 1.875 x 1.875 (the file states no size at all). The scan sees the prior's grid
through a resampling that is a crop, turned into its orientation. What no data speak of, FLAIR, T2*, CT and PET, is the
prior's own and shown as such: there is nothing to check it with. The data are scaled so that the brain of the SENSE
image has the median --level, about that of the simulated T1: a guess made once, before any result. Settings are those
that bundles ship.

The data: cartesian_ksp.npy of the sigpy MRI tutorial (mikgroup/sigpy-mri-tutorial, BSD-3); see ci/gallery_kspace.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from gallery_kspace import FILE, MODALITY, Scan, held_out_error, noise_floor, sense, split
from gallery_parts import Panel, draw, real_data, upright
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.bundle import load, load_network
from multirecon.data.kspace import read_kspace
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.metrics import reporting_range
from multirecon.operators import BlockDiagonal, MaskedFourier, acceleration
from multirecon.operators.resample import Resample
from multirecon.space import ImageSpace
from multirecon.units import attenuation_to_hu

METHODS = "sense_mr,cs_mr,tv_petmrct,wavelet_diffusion_petmrct:fast,wavelet_diffusion_petmrct:mean,any2all_petmrct:fast"
KEPT, PIXELS = (122, 96), (1.875, 1.875)  # frequencies (rows, columns), mm
GRID = 128
LEVEL = 0.6


def crop(kspace: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the central frequencies of centred k-space ``(..., H, W)``."""
    rows, columns = (slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(kspace.shape[-2:], size, strict=True))
    return kspace[..., rows, columns]


def scan_affine(image: Tensor) -> list[list[float]]:
    """Return the affine of the scan's grid: head in the middle, rows from anterior to posterior.

    Its voxels fall on those of the prior's grid, so that resampling is a crop. Columns run from the patient's right to
    left, as in ci/gallery_kspace.py.
    """
    head = image[0, 0].abs() > 0.2 * image.abs().quantile(0.99)
    middle = []
    for axis in (1, 0):
        found = head.sum(axis).gt(3).nonzero().flatten()
        middle.append(round(float(found[0] + found[-1]) / 2) + 0.5)  # the prior's grid has its centre between voxels
    (row, column), (high, wide) = middle, PIXELS
    return [[0.0, -wide, 0.0, wide * column], [-high, 0.0, 0.0, high * row], [0.0, 0.0, 1.0, 0.0], [0, 0, 0, 1]]


def measurements(scan: Scan, level: float) -> tuple[Measurement, Measurement, Resample, float]:
    """Return the kept samples on the scan's own grid and on the prior's, what leads from there, and the data's gain."""
    operator = MaskedFourier(scan.kept, scan.maps)
    image = sense(operator, scan.kspace * scan.kept)
    inner = image[0, 0, KEPT[0] // 3 : -KEPT[0] // 3, KEPT[1] // 3 : -KEPT[1] // 3]
    gain = level / float(inner.median())
    affine = scan_affine(image)
    own = ImageSpace([MODALITY], KEPT, PIXELS, affine)
    high, wide = PIXELS
    prior = ImageSpace([MODALITY], (GRID, GRID), (wide, high))
    data = Blocks({MODALITY: gain * (scan.kspace * scan.kept)[None]})
    likelihood = BlockLikelihood({MODALITY: Gaussian(gain * scan.sigma, support=scan.kept[None, None])})
    turn = Resample((1, GRID, GRID), KEPT, source_affine=prior.affine, target_affine=own.affine)
    meta = {"source": "mikgroup/sigpy-mri-tutorial, data/cartesian_ksp.npy, BSD-3-Clause", "simulated": False}
    seen = ((own, MaskedFourier(scan.kept[None], scan.maps[None])), (prior, operator @ turn))
    first, second = (Measurement(data, BlockDiagonal(space, {MODALITY: a}), likelihood, meta) for space, a in seen)
    return first, second, turn, gain


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--level", type=float, default=LEVEL)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kspace, _ = read_kspace(real_data(FILE) / FILE)
    kspace = crop(kspace, KEPT)
    scan = split(kspace, (kspace != 0).any(0).float(), phase_size=64)
    own, on_prior, turn, gain = measurements(scan, given.level)
    print(f"acceleration {acceleration(scan.kept):.2f}, held out {int(scan.held_out.sum())} points, "
          f"sigma <= {gain * scan.sigma:.4f}, noise floor <= {noise_floor(scan):.3f}")  # fmt: skip
    panels, stacks = [], {}
    for method in filter(None, given.methods.split(",")):
        name, _, variant = method.partition(":")
        workflow = load(name, variant or None, device="$torch.device('cpu')")
        network, begin = load_network(workflow), time.process_time()
        diffusion = "DiffusionPrior" in str(workflow.parser.get("prior"))
        # in the prior's own stack, so that what is missing comes back, too
        measurement = on_prior.embed(workflow.parser.get_parsed_content("space")) if diffusion else own
        with torch.no_grad():
            stack = workflow.inferer(measurement, network).as_tensor()
        seconds = time.process_time() - begin
        image = turn(stack[:, measurement.space.channels(MODALITY)]) if diffusion else stack
        error = held_out_error(scan, image / gain, scan.maps)
        print(f"{method:32s} held-out error {error:.3f}, {seconds:.1f} s", flush=True)
        panels.append(Panel(f"{method}\n{error:.3f}", image[0, 0], (0.0, 2 * given.level)))
        if diffusion:
            stacks[method] = (stack, workflow.parser.get_parsed_content("space"))
    rows = [panels]
    for method, (stack, space) in list(stacks.items())[:1]:
        line = []
        for modality in space.modalities:
            image = stack[0, space.channels(modality.name)][0]
            low, high = reporting_range(modality).window
            image = attenuation_to_hu(image) if modality.name == "ct" else image / modality.scale
            shown = "measured" if modality.name == MODALITY else "the prior's own"
            line.append(Panel(f"{modality.name}: {shown}", upright(image), (low, high)))
        rows.append(line)
        print(f"second row: {method}")
    draw(given.out / "kspace_prior.png", rows, width=1.9, dpi=90, palette=64)
    return 0


if __name__ == "__main__":
    sys.exit(main())
