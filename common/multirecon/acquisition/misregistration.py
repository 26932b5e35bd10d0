"""Misregistered images: an auxiliary image that does not lie where the measured one lies."""

from __future__ import annotations

from math import cos, hypot, pi, radians, sin

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .base import Scan, ScanContext, ScanResult

__all__ = ["Misregistered", "move"]


class Misregistered(Scan):
    """A scan of the object moved rigidly: the model handed over knows nothing of it.

    Direction of the shift and sense of the rotation (about the image centre) are drawn for every sample.

    Args:
        scan: how the moved object is measured.
        shift_mm: length of the shift in mm.
        rotation_deg: angle of the rotation in degrees.

    Raises:
        ValueError: if a length or angle is negative.

    Example:
        >>> from multirecon.acquisition import CleanImage
        >>> Misregistered(CleanImage(), shift_mm=2.0, rotation_deg=1.0).shift_mm
        2.0
    """

    def __init__(self, scan: Scan, *, shift_mm: float, rotation_deg: float = 0.0) -> None:
        if shift_mm < 0 or rotation_deg < 0:
            raise ValueError(f"shift_mm, rotation_deg: expected >= 0, got {shift_mm} and {rotation_deg}")
        self.scan = scan
        self.shift_mm = shift_mm
        self.rotation_deg = rotation_deg

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Move the fine image ``(1, channels, *fine)``, then let the scan measure it."""
        turn, sense = torch.rand(2, generator=context.generator, dtype=torch.float64).tolist()
        shift = self.shift_mm * cos(2 * pi * turn), self.shift_mm * sin(2 * pi * turn)
        angle = radians(self.rotation_deg) * (1 if sense < 0.5 else -1)
        spacing = [s / context.oversample for s in context.space.spacing_mm]
        return self.scan.acquire(move(fine, shift_mm=shift, angle=angle, spacing_mm=spacing), context)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        return f"{self.scan.describe()}, misregistered"

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        turned = f" and turned by {self.rotation_deg:g} degrees" if self.rotation_deg else ""
        return (*self.scan.mismatch(), f"moved by {self.shift_mm:g} mm{turned}")


def move(image: Tensor, *, shift_mm: tuple[float, float], angle: float, spacing_mm: list[float]) -> Tensor:
    r"""Return the image of the object at ``R p + t``: ``v(p) = u(R^T (p - t))``, linear interpolation, zero outside.

    Args:
        image: ``(B, C, H, W)``.
        shift_mm: ``t`` along both axes in mm.
        angle: angle of ``R`` about the image centre in radians, from axis 0 to axis 1.
        spacing_mm: pixel size in mm.

    Raises:
        ValueError: if the image is not two-dimensional.
    """
    if image.ndim != 4:
        raise ValueError(f"image: expected (B, C, H, W), got {tuple(image.shape)}")
    if angle == 0 and hypot(*shift_mm) == 0:
        return image
    axes = [
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * s - t
        for n, s, t in zip(image.shape[2:], spacing_mm, shift_mm, strict=True)
    ]
    a, b = axes[0][:, None], axes[1][None, :]
    source = cos(angle) * a + sin(angle) * b, cos(angle) * b - sin(angle) * a
    # grid_sample wants the last axis first, with the image's edges at -1 and 1
    places = [2 * p / (n * s) for p, n, s in zip(source, image.shape[2:], spacing_mm, strict=True)]
    grid = torch.stack(torch.broadcast_tensors(places[1], places[0]), -1)[None].to(image)
    return grid_sample(image, grid.expand(len(image), -1, -1, -1), mode="bilinear", align_corners=False)
