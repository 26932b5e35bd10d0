"""A diffusion prior as a deepinv denoiser, so that deepinv's samplers run with the very network of a bundle."""

from __future__ import annotations

import torch
from deepinv.models import Denoiser as DeepinvDenoiser
from torch import Tensor, nn

from multirecon.priors import DiffusionPrior

__all__ = ["PriorDenoiser"]


class PriorDenoiser(DeepinvDenoiser):
    r"""``D(x, s)`` of a prior in deepinv's range: about [0, 1], with noise of standard deviation ``s`` in that range.

    The prior works in ``2 x - 1``, where the noise level doubles. Its own conversion from noise level to time is used,
    so any schedule of deepinv's fits. Modalities whose scaling is not ``(x + 1) / 2`` (CT, PET) come and go in the
    unit range of :meth:`~multirecon.priors.DiffusionPrior.to_range`, not in physical units.

    Args:
        prior: the prior.
        network: its network; parameters keep their place and are not trained here.
        autocast: precision inside the network, ``torch.bfloat16``, ``torch.float16`` or None.

    Example:
        >>> from multirecon.priors import NoiseSchedule, Parametrisation
        >>> from multirecon.space import ImageSpace
        >>> kind = Parametrisation("preconditioned", mean=[0.0], std=[1.0])
        >>> space = ImageSpace(["t1"], (2, 2), (1.0, 1.0))
        >>> prior = DiffusionPrior(space, NoiseSchedule.cosine(), parametrisation=kind)
        >>> D = PriorDenoiser(prior, lambda image, timestep: torch.zeros_like(image))
        >>> round(D(torch.full((1, 1, 2, 2), 0.75), 0.5).max().item(), 3)
        0.625
    """

    def __init__(self, prior: DiffusionPrior, network: nn.Module, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network = network
        self._denoiser = prior.denoiser(network, autocast=autocast)

    def forward(self, x: Tensor, sigma: Tensor | float, **_: object) -> Tensor:
        """Return the denoised images ``(B, C, *shape)``.

        Args:
            x: noisy images ``(B, C, *shape)`` in deepinv's range.
            sigma: noise level in that range, one number or one a sample.
        """
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
        return (self._denoiser(2 * x - 1, 2 * level) + 1) / 2
