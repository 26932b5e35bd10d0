"""Reconstruct the measured 8-coil k-space and judge the images by samples held out of it.

    python ci/gallery_kspace.py docs/gallery [--work output/kspace]

prints the error on the held-out samples and draws OUT/kspace.png. It writes the phase-absorbed measurement and runs
bundles on it by MONAI's stock command, which it prints; what lies in --work already is not made again.

The data: cartesian_ksp.npy of the sigpy MRI tutorial (mikgroup/sigpy-mri-tutorial, BSD-3), 8 coils, 230 x 180,
Poisson-disc sampled.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from gallery_parts import Panel, draw, read_images, real_data, run_bundle
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.data.kspace import hold_out, noise_level, read_kspace
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, MaskedFourier, acceleration, calibration_size, estimate_maps
from multirecon.operators.coils import image_phase
from multirecon.solvers.cg import least_squares
from multirecon.space import ImageSpace

FILE = "kspace/cartesian_ksp.npy"
DAMPING = 0.01  # weight of |x|^2 against |A x - y|^2 where the maps have root sum of squares one
MODALITY = "t1"
BUNDLES = {"sense_mr": "SENSE", "cs_mr": "L1-wavelet", "tv_petmrct": "TV"}


class Scan(NamedTuple):
    """The measured scan, split; nothing but the kept samples enters maps, phase and reconstruction.

    Attributes:
        kspace: complex64 ``(coils, H, W)``, all samples.
        kept: float32 mask ``(H, W)`` to reconstruct from.
        held_out: float32 mask ``(H, W)`` to judge by.
        complex_maps: coil maps ``(coils, H, W)`` of a complex image.
        maps: the same with the image phase absorbed: for a real image.
        sigma: estimated noise standard deviation of the real and of the imaginary part.
    """

    kspace: Tensor
    kept: Tensor
    held_out: Tensor
    complex_maps: Tensor
    maps: Tensor
    sigma: float


def load_scan(folder: Path, *, fraction: float = 0.1, seed: int = 0, phase_size: int = 128) -> Scan:
    """Read the file, hold samples out, and estimate maps and phase from the rest.

    The phase is that of a complex CG-SENSE image of the kept samples under a low-pass of ``phase_size`` frequencies:
    the calibration block alone (24 x 24) is too small for this head's phase.
    """
    return split(*read_kspace(folder / FILE), fraction=fraction, seed=seed, phase_size=phase_size)


def split(kspace: Tensor, mask: Tensor, *, fraction: float = 0.1, seed: int = 0, phase_size: int = 128) -> Scan:
    """Hold samples out of k-space ``(coils, H, W)``, estimate maps and phase from the rest, as :func:`load_scan`."""
    block = calibration_size(mask)
    kept, held_out = hold_out(mask, fraction, torch.Generator().manual_seed(seed), calibration=block)
    seen = kspace * kept
    complex_maps = estimate_maps(seen, calibration=block, real_image=False)
    image = sense(MaskedFourier(kept, complex_maps, real_image=False), seen)
    phase = image_phase(image[0, 0], (phase_size, phase_size))
    maps = complex_maps * torch.polar(torch.ones_like(phase), phase)
    return Scan(kspace, kept, held_out, complex_maps, maps, noise_level(kspace))


def sense(operator: MaskedFourier, kspace: Tensor, *, damping: float = DAMPING) -> Tensor:
    """Return the CG-SENSE image ``(1, 1, H, W)``."""
    return least_squares(operator, kspace[None], damping=damping, max_iterations=80, tolerance=1e-5).x


def held_out_error(scan: Scan, image: Tensor, maps: Tensor) -> float:
    """Return ``|M_held F S x - y_held| / |y_held|``."""
    operator = MaskedFourier(scan.held_out, maps, real_image=not image.is_complex())
    target = scan.kspace * scan.held_out
    return float(torch.linalg.vector_norm(operator(image)[0] - target) / torch.linalg.vector_norm(target))


def noise_floor(scan: Scan) -> float:
    """Return the held-out error that noise alone would cause (an upper estimate: sigma is one)."""
    target = scan.kspace * scan.held_out
    count = float(scan.held_out.sum()) * len(target)
    return (2 * count) ** 0.5 * scan.sigma / float(torch.linalg.vector_norm(target))


def as_measurement(scan: Scan) -> Measurement:
    """Return the kept samples with phase-absorbed maps: a real, non-negative image on a grid of 1 mm.

    The source states neither voxel size nor orientation. 1 mm is nominal; rows run from anterior to posterior, as the
    picture shows, and columns are taken from the patient's right to left (radiological display).
    """
    height, width = scan.kept.shape
    affine = [[0.0, -1.0, 0.0, (width - 1) / 2], [-1.0, 0.0, 0.0, (height - 1) / 2], [0.0, 0.0, 1.0, 0.0], [0, 0, 0, 1]]
    space = ImageSpace([MODALITY], (height, width), (1.0, 1.0), affine)
    operator = MaskedFourier(scan.kept[None], scan.maps[None])
    return Measurement(
        Blocks({MODALITY: (scan.kspace * scan.kept)[None]}),
        BlockDiagonal(space, {MODALITY: operator}),
        BlockLikelihood({MODALITY: Gaussian(scan.sigma, support=scan.kept[None, None])}),
        {"source": "mikgroup/sigpy-mri-tutorial, data/cartesian_ksp.npy, BSD-3-Clause", "simulated": False},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/kspace"), help="folder of measurement and images")
    arguments = parser.parse_args()
    scan, work = load_scan(real_data(FILE)), arguments.work.absolute()
    if not (work / "data" / "brain.h5").exists():
        as_measurement(scan).save(work / "data" / "brain.h5")
    seen = scan.kspace * scan.kept
    complex_operator = MaskedFourier(scan.kept, scan.complex_maps, real_image=False)
    images = [
        ("zero-filled", complex_operator.adjoint(seen[None]), scan.complex_maps),
        ("CG-SENSE, complex image", sense(complex_operator, seen), scan.complex_maps),
        ("CG-SENSE, real image", sense(MaskedFourier(scan.kept, scan.maps), seen), scan.maps),
    ]
    for name, title in BUNDLES.items():
        folder = run_bundle(name, work / "data", work / name)
        images.append((f"{title} ({name})", read_images(folder, MODALITY), scan.maps))
    print(f"acceleration {acceleration(scan.kept):.2f}, held out {int(scan.held_out.sum())} points, "
          f"sigma <= {scan.sigma:.4f}, noise floor <= {noise_floor(scan):.3f}")  # fmt: skip
    for title, image, maps in images:
        print(f"{title:26s} held-out error {held_out_error(scan, image, maps):.3f}")
    top = float(images[-1][1].quantile(0.995))
    panels = [Panel("sampled points", scan.kept, (0.0, 1.0))]
    panels += [Panel(t, (i.abs() if i.is_complex() else i)[0, 0], (0.0, top)) for t, i, _ in images]
    draw(arguments.out / "kspace.png", [panels[:4], panels[4:]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
