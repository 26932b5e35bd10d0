"""U-Nets that turn an image of one reference energy into the images of several energies, one network an energy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["EnergyUNets"]


class EnergyUNets(nn.Module):
    r"""One U-Net for each energy, ``f_k(z) = b_k(z) + g_k N_k(z)``: what connects the energies of a latent image ``z``.

    ``N_k`` is MONAI's U-Net without normalisation, so that it is local and keeps absolute values, and with a smooth
    activation, for quasi-Newton steps go through it. The first level works at full resolution. It corrects a curve
    of two straight lines, ``b_k(z) = s z + (t - s) \tau \log(1 + e^{(z - m) / \tau})``, ``\tau = 0.01``: pixels
    of soft tissue lie on the first line, mixtures of soft tissue and bone on the second one. Curve and gain ``g`` are
    learned too; the curve starts as the identity unless slopes are given.

    Args:
        energies: number of energies ``K``.
        channels: width of each level, highest resolution first.
        strides: strides between the levels, the first that of the first level itself.
        num_res_units: convolutions of a residual unit.
        activation: MONAI's name of the activation.
        slopes: first ``s`` and ``t`` of every energy; 1 and 1 by default.
        knot: first ``m``.

    Raises:
        ValueError: if there is no energy, or not one pair of slopes an energy.

    Example:
        >>> EnergyUNets(2, channels=[4, 8], strides=[1])(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    def __init__(
        self,
        energies: int,
        *,
        channels: Sequence[int] = (8, 16, 20, 24),
        strides: Sequence[int] = (1, 2, 2),
        num_res_units: int = 2,
        activation: str = "GELU",
        slopes: Sequence[Sequence[float]] | None = None,
        knot: float = 0.45,
    ) -> None:
        super().__init__()
        if energies < 1:
            raise ValueError(f"energies: expected >= 1, got {energies}")
        pairs = torch.tensor([[1.0, 1.0]] * energies if slopes is None else [list(pair) for pair in slopes])
        if pairs.shape != (energies, 2):
            raise ValueError(f"slopes: expected {energies} pairs, got {slopes}")
        self.width = 0.01  # of the bend between the lines
        self.slopes = nn.Parameter(pairs)
        self.knots = nn.Parameter(torch.full((energies,), float(knot)))
        self.gains = nn.Parameter(torch.full((energies,), 0.1))
        self.branches = nn.ModuleList(
            UNet(2, 1, 1, channels=channels, strides=strides, num_res_units=num_res_units, act=activation,
                 norm=None)
            for _ in range(energies)
        )  # fmt: skip

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the images of all energies ``(B, K, H, W)`` of one ``(B, 1, H, W)``; ``timestep`` is ignored."""
        images = []
        for k, branch in enumerate(self.branches):
            images.append(self.curve(image, k) + self.gains[k] * branch(image))
        return torch.cat(images, dim=1)

    def curve(self, image: Tensor, energy: int) -> Tensor:
        """Return ``b_k`` of an image, pixel by pixel."""
        first, second = self.slopes[energy, 0], self.slopes[energy, 1]
        bend = self.width * softplus((image - self.knots[energy]) / self.width)
        return first * image + (second - first) * bend

    @torch.jit.ignore
    def at(self, image: Tensor, energies: Sequence[int]) -> Tensor:
        """Return the images of some energies only, ``(B, len(energies), H, W)``."""
        images = [self.curve(image, k) + self.gains[k] * self.branches[k](image) for k in energies]
        return torch.cat(images, dim=1)
