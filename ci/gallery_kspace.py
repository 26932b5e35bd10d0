"""Reconstruct the measured 8-coil k-space (MULTIRECON_REAL_DATA/kspace) and judge it by samples held out of it.

    python ci/gallery_kspace.py OUT [--measurement FILE.h5] [--result FILE.nii.gz]

writes OUT/kspace_sense.png and prints the error on the held-out samples. With --measurement it stores the
phase-absorbed measurement that `python -m monai.bundle run` of a reconstruction bundle reads; with --result it judges
and draws what that bundle wrote.

The data: 8 coils, 230 x 180, Poisson-disc sampled, from the sigpy MRI tutorial (mikgroup/sigpy-mri-tutorial, BSD-3).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.data.kspace import hold_out, noise_level, read_kspace
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, MaskedFourier, acceleration, calibration_size, estimate_maps
from multirecon.operators.coils import image_phase
from multirecon.solvers.cg import least_squares
from multirecon.space import ImageSpace

FILE = Path("kspace") / "cartesian_ksp.npy"
DAMPING = 0.01  # weight of |x|^2 against |A x - y|^2 where the maps have root sum of squares one
MODALITY = "t1"


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
    kspace, mask = read_kspace(folder / FILE)
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


def draw(path: Path, panels: list[tuple[str, Tensor]]) -> None:
    """Write one row of grey-value pictures, each ``(H, W)``, on one scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    top = float(panels[-1][1].quantile(0.995))
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.7), layout="constrained")
    for axis, (title, image) in zip(axes, panels, strict=True):
        axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1 if image.max() <= 1 and image.min() >= 0 else top)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part.png")
    figure.savefig(draft, dpi=150)
    plt.close(figure)
    os.replace(draft, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--measurement", type=Path, help="also write the measurement file (.h5)")
    parser.add_argument("--result", type=Path, help="also judge the image (.nii.gz) that a bundle made of it")
    arguments = parser.parse_args()
    folder = os.environ.get("MULTIRECON_REAL_DATA", "")
    if not (Path(folder) / FILE).is_file():
        print(f"MULTIRECON_REAL_DATA: expected a folder with {FILE}, got {folder!r}", file=sys.stderr)
        return 2
    scan = load_scan(Path(folder))
    seen = scan.kspace * scan.kept
    zero_filled = MaskedFourier(scan.kept, scan.complex_maps, real_image=False).adjoint(seen[None])
    complex_image = sense(MaskedFourier(scan.kept, scan.complex_maps, real_image=False), seen)
    real_image = sense(MaskedFourier(scan.kept, scan.maps), seen)
    print(f"acceleration {acceleration(scan.kept):.2f}, held out {int(scan.held_out.sum())} points, "
          f"sigma <= {scan.sigma:.4f}, noise floor <= {noise_floor(scan):.3f}")  # fmt: skip
    images = [
        ("zero-filled", zero_filled, scan.complex_maps),
        ("CG-SENSE, complex image", complex_image, scan.complex_maps),
        ("CG-SENSE, real image", real_image, scan.maps),
    ]
    if arguments.result is not None:
        values = torch.from_numpy(nib.load(arguments.result).get_fdata(dtype="float32"))
        images.append((f"bundle: {arguments.result.parent.name}", values.reshape(1, 1, *scan.kept.shape), scan.maps))
    for name, image, maps in images:
        print(f"{name:26s} held-out error {held_out_error(scan, image, maps):.3f}")
    panels = [("sampled points", scan.kept)]
    panels += [(name, image[0, 0].abs() if image.is_complex() else image[0, 0]) for name, image, _ in images]
    draw(arguments.out / "kspace_sense.png", panels)
    if arguments.measurement is not None:
        as_measurement(scan).save(arguments.measurement)
    return 0


if __name__ == "__main__":
    sys.exit(main())
