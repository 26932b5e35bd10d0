"""Training pairs of the denoiser: patches with the noise of a PET scan's gradient, or with white noise; metrics."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multirecon.acquisition import Acquisition, PETScan
from multirecon.bundle.weights import read_weights, write_weights
from multirecon.data.materials import attenuation_511, unit_to_hu
from multirecon.networks.dncnn import SpectralDnCNN
from multirecon.priors.pair_training import PreparePatchPairs
from multirecon.reconstruction.em import unit_range
from multirecon.reconstruction.plug_and_play import mean_activity
from multirecon.solvers.em import osem
from multirecon.space import ImageSpace

__all__ = ["PreparePairs", "certify_weights"]

_log = logging.getLogger(__name__)

MODES = ("fixed_point", "gaussian", "postprocess")
SUPPORT = 0.01
"""Share of the largest activity above which a pixel counts for the scale of an image."""


class PreparePairs(PreparePatchPairs):
    r"""Turns clean slices of CT and PET into pairs ``(x~, x)`` of patches, both divided by the mean activity ``c``.

    * ``"fixed_point"``: a scan ``y`` of the slice is simulated by the scanner's own model, with attenuation from the
      CT, scatter and randoms, and

      .. math:: \tilde x = x - \nabla f_y(x) / \rho + \tau n,

      the argument of the denoiser in ``x = D(x - grad f(x) / rho)`` at the truth. The disturbance ``A^T (y / ybar - 1)
      / rho`` has mean zero, is coloured like the scanner's noise and depends on the image; ``rho`` makes its root mean
      square over the emitting pixels ``level``. Where nothing emits (``x = 0``) the equation holds up to a normal-cone
      term, any non-negative image: its negative part is dropped there, and its positive part, several times the level
      in air where ``ybar`` is next to nothing, is bounded by the level. White noise ``n`` of a small ``tau`` is
      added: what the scanner does not see at all (its blur removes the highest frequencies) would otherwise stay in
      the image whatever it is.
    * ``"gaussian"``: ``x~ = x + level n``, the control.
    * ``"postprocess"``: ``x~`` is the OSEM image of the scan: a network after reconstruction, with what it is compared.

    In training the clean patch is multiplied by a random ``gain`` and the disturbance is not: one network for several
    ratios of noise and image, chosen at reconstruction by the unit of the image (``D(g x) / g``).

    Scans, noise, augmentation and patches are functions of (seed, step, rank).

    Args:
        space: the grid of the slices; its only modality is PET.
        mode: see above.
        counts: trues for each emitting pixel, drawn from these.
        views: views of the scan.
        bin_spacing_mm: radial bin width in mm.
        psf_fwhm_mm: resolution in mm, in data and model.
        level: root mean square of the disturbance relative to the mean activity.
        white: ``tau`` relative to the mean activity.
        gains: smallest and largest gain, drawn log-uniformly for every patch where there is an augmentation.
        guide_noise: standard deviation of white noise in the guides, which lie between 0 and 1.
        **options: ``patch``, ``patches``, ``augmentation`` (of stacks ``[ct, pet_fdg, guides]``), ``seed``, ``rank`` of
            :class:`~multirecon.priors.pair_training.PreparePatchPairs`.

    Raises:
        ValueError: on an unknown mode.

    References:
        savanier2024
    """

    threshold = 0.0

    def __init__(
        self,
        space: ImageSpace,
        *,
        mode: str = "fixed_point",
        counts: Sequence[float] = (2.5, 5.0, 10.0, 20.0, 50.0),
        views: int = 120,
        bin_spacing_mm: float = 3.0,
        psf_fwhm_mm: float = 4.5,
        level: float = 0.22,
        white: float = 0.05,
        gains: tuple[float, float] = (0.7, 2.0),
        guide_noise: float = 0.03,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {list(MODES)}, got {mode!r}")
        self.space, self.mode, self.level, self.white = space, mode, level, white
        self.counts, self.gains, self.guide_noise = tuple(counts), gains, guide_noise
        self.name = space.names[0]
        # no mismatch: the disturbance has mean zero at the truth
        self.scans = [
            PETScan(n, views=views, bin_spacing_mm=bin_spacing_mm, psf_fwhm_mm=psf_fwhm_mm,
                    model_psf_fwhm_mm=psf_fwhm_mm, background_error=0.0)
            for n in self.counts
        ]  # fmt: skip

    def stacks(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return clean and noisy images and guides ``(B, 2 + G, H, W)`` of stacks ``[ct, pet, guides]``."""
        made = torch.cat([self.pair(one[None, :2], generator) for one in image])
        guides = [unit_range(guide[:, None]) for guide in image[:, 2:].unbind(1)]
        noise = [self.guide_noise * torch.randn(guide.shape, generator=generator) for guide in guides]
        return torch.cat([made, *(g + n for g, n in zip(guides, noise, strict=True))], dim=1)

    def pairs(self, cut: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noisy patches and guides ``(N, 1 + G, patch, patch)``, targets with the channels clean, noisy too."""
        if self.augmentation is not None:
            low, high = self.gains
            gain = low * (high / low) ** torch.rand(len(cut), 1, 1, 1, generator=generator)
            clean, noisy, guides = cut.tensor_split([1, 2], dim=1)
            cut = torch.cat([gain * clean, gain * clean + noisy - clean, guides], dim=1)
        return cut[:, 1:], cut

    @torch.no_grad()
    def pair(self, stack: Tensor, generator: torch.Generator) -> Tensor:
        """Return clean and noisy image ``(1, 2, H, W)`` over the mean activity, of a stack ``[ct, pet]``."""
        activity = stack[:, 1:].clamp_min(0)
        support = activity > SUPPORT * activity.max()
        if not bool(support.any()):
            return torch.zeros_like(stack)
        x = activity / activity[support].mean()
        if self.mode == "gaussian":
            return torch.cat([x, x + self.level * torch.randn(x.shape, generator=generator)], dim=1)
        number = int(torch.randint(len(self.scans), (), generator=generator))
        name = str(int(torch.randint(2**62, (), generator=generator)))
        maps = {self.name: x, "attenuation": attenuation_511(unit_to_hu(stack[:, :1].clamp_min(0)))}
        m = Acquisition(self.space, {self.name: self.scans[number]}, key="pairs")(maps, [name])
        operator, likelihood, y = m.operator[self.name], m.likelihood[self.name], m.y[self.name]
        if self.mode == "postprocess":
            image = osem(operator, likelihood, y, subsets=6, iterations=4)
            return torch.cat([x, image / mean_activity(image).reshape(-1, 1, 1, 1)], dim=1)
        gradient = operator.adjoint(likelihood.grad(operator(x), y))
        step = self.level / gradient[support].square().mean().sqrt()
        moved = torch.where(support, -step * gradient, (-step * gradient).clamp(0.0, self.level))
        noisy = x + moved + self.white * torch.randn(x.shape, generator=generator)
        return torch.cat([x, noisy], dim=1)


def certify_weights(path: str | os.PathLike[str], *, network: SpectralDnCNN) -> str:
    """Set the norms in a checkpoint of a ``SpectralDnCNN`` to proved bounds, and say which they are.

    Args:
        path: the checkpoint, written anew.
        network: a network of its structure; it takes the weights.
    """
    network.load_state_dict(read_weights(path))
    network.certify()
    write_weights(network.state_dict(), path)
    line = f"{path}: norms at most {', '.join(f'{float(n):.3f}' for n in network.norms)}, each divided by"
    _log.info(line)
    return line
