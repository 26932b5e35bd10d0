"""Variational autoencoders of co-registered patches: one encoder and one decoder a modality, one latent for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["FUSIONS", "MultiBranchVAE", "SeparateVAE", "fuse_gaussians"]

FUSIONS = ("joint", "poe", "mmjsd")


class BranchEncoder(nn.Module):
    """Strided 3 x 3 convolutions of one modality, each halving the patch: ``(B, 1, P, P)`` to ``(B, features)``.

    Args:
        channels: channels after every convolution.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for after in channels:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
            before = after
        self.layers = nn.Sequential(*layers)

    def forward(self, patch: Tensor) -> Tensor:
        """Return the features of patches ``(B, 1, P, P)``."""
        return self.layers(patch).flatten(1)


class BranchDecoder(nn.Module):
    """Dense layer and transposed 4 x 4 convolutions of one modality: ``(B, dense)`` to ``(B, 1, P, P)``.

    Args:
        channels: channels of the encoder, from the patch inwards.
        dense: width of the input.
        side: side of the deepest feature map.
    """

    def __init__(self, channels: Sequence[int], *, dense: int, side: int) -> None:
        super().__init__()
        self.side, self.depth = side, channels[-1]
        self.expand = nn.Linear(dense, self.depth * side**2)
        layers: list[nn.Module] = []
        for before, after in zip(channels[::-1], [*channels[-2::-1], 1], strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return patches ``(B, 1, P, P)`` of the shared decoder layer ``(B, dense)``."""
        return self.layers(self.expand(hidden).reshape(-1, self.depth, self.side, self.side))


class GaussianHead(nn.Module):
    """From features to mean and log-variance of a diagonal normal distribution of the latent.

    Args:
        features: width of the input.
        dense: width of the hidden layer.
        latent: size of the latent.
    """

    def __init__(self, features: int, *, dense: int, latent: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, dense)
        self.moments = nn.Linear(dense, 2 * latent)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, ``(B, latent)`` each."""
        mean, log_variance = self.moments(nn.functional.silu(self.hidden(features))).chunk(2, 1)
        # the exponential of either sign has to stay harmless in half precision
        return mean, log_variance.clamp(-10.0, 4.0)


class MultiBranchVAE(nn.Module):
    r"""Joint VAE of ``K`` modalities: the patches of all of them are decoded from one latent, ``x_k = G_k(z)``.

    Each modality has an encoder and a decoder of its own; the first decoder layer is shared. Inference of the latent:

    * ``"joint"``: the features of all branches are concatenated, one head gives mean and log-variance;
    * ``"poe"``: every branch has a head, an expert ``N(mu_k, S_k)``; the posterior is their product with the prior,
      ``S^{-1} = I + sum_k S_k^{-1}``, so that any of them may be missing;
    * ``"mmjsd"``: the same heads; the posterior is the dynamic prior of the multimodal Jensen-Shannon divergence, the
      normalised geometric mean of experts and prior, all with the weight ``1 / (K + 1)``.

    ``"poe"`` and ``"mmjsd"`` have the same weights; they differ in how these are trained and combined.

    Args:
        modalities: number of modalities ``K``.
        patch: side of the patches, a multiple of ``2^len(channels)``.
        channels: channels of the convolutions, each of which halves the patch.
        dense: width of the dense layers.
        latent: size of the latent.
        fusion: see above.

    Raises:
        ValueError: if the patch cannot be halved so often, or the fusion is unknown.

    References:
        pinton2024, sutter2020

    Example:
        >>> sum(p.numel() for p in MultiBranchVAE().parameters())
        2640642
        >>> MultiBranchVAE(channels=(4, 8), dense=16, latent=4)(torch.zeros(3, 2, 32, 32)).shape
        torch.Size([3, 2, 32, 32])
    """

    __constants__: ClassVar = ["experts_fused"]  # lets TorchScript drop the other way of fusing

    def __init__(
        self,
        *,
        modalities: int = 2,
        patch: int = 32,
        channels: Sequence[int] = (32, 64, 128),
        dense: int = 256,
        latent: int = 32,
        fusion: str = "joint",
    ) -> None:
        super().__init__()
        side = patch // 2 ** len(channels)
        if modalities < 1 or not channels or side < 1 or side * 2 ** len(channels) != patch:
            raise ValueError("modalities, patch, channels: expected >= 1 modality, >= 1 layer and a patch that can be "
                             f"halved for each, got {modalities}, {patch} and {list(channels)}")  # fmt: skip
        if fusion not in FUSIONS:
            raise ValueError(f"fusion: expected one of {FUSIONS}, got {fusion!r}")
        self.modalities, self.patch, self.latent = modalities, patch, latent
        self.fusion = fusion
        self.experts_fused = fusion != "joint"
        self.prior_weight = 1.0 / (modalities + 1) if fusion == "mmjsd" else 1.0
        self.expert_weight = self.prior_weight
        features = channels[-1] * side**2
        self.encoders = nn.ModuleList([BranchEncoder(channels) for _ in range(modalities)])
        inputs = [features] * modalities if self.experts_fused else [modalities * features]
        self.heads = nn.ModuleList([GaussianHead(n, dense=dense, latent=latent) for n in inputs])
        self.trunk = nn.Linear(latent, dense)
        self.decoders = nn.ModuleList([BranchDecoder(channels, dense=dense, side=side) for _ in range(modalities)])

    def experts(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of every head, ``(B, H, latent)`` each (joint head: ``H = 1``, else ``K``).

        Args:
            image: patches in the network's range, ``(B, K, P, P)``.
        """
        features: list[Tensor] = []
        for k, encoder in enumerate(self.encoders):
            features.append(encoder(image[:, k : k + 1]))
        if not self.experts_fused:
            features = [torch.cat(features, 1)]
        means: list[Tensor] = []
        log_variances: list[Tensor] = []
        for k, head in enumerate(self.heads):
            mean, log_variance = head(features[k])
            means.append(mean)
            log_variances.append(log_variance)
        return torch.stack(means, 1), torch.stack(log_variances, 1)

    def encode(self, image: Tensor, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, ``(B, latent)`` each.

        Args:
            image: patches in the network's range, ``(B, K, P, P)``.
            available: 1 for modalities that count, 0 for missing ones, ``(K,)``; experts alone can leave one out, the
                joint head then answers with the prior.
        """
        means, log_variances = self.experts(image)
        if self.experts_fused:
            weights = torch.ones(means.shape[1], dtype=means.dtype, device=means.device)
            if available is not None:
                weights = available.to(means)
            return fuse_gaussians(means, log_variances, self.expert_weight * weights, self.prior_weight)
        mean, log_variance = means[:, 0], log_variances[:, 0]
        if available is not None:
            complete = (available > 0).all().to(mean)
            mean, log_variance = mean * complete, log_variance * complete
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Return the patches ``(B, K, P, P)`` of latents ``(B, latent)``, in the network's range."""
        hidden = self.trunk(z)
        patches: list[Tensor] = []
        for decoder in self.decoders:
            patches.append(decoder(hidden))
        return torch.cat(patches, 1)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the reconstruction ``(B, K, P, P)`` from the mean of the latent; ``timestep`` is ignored."""
        return self.decode(self.encode(image)[0])


class SeparateVAE(nn.Module):
    """The control of the joint VAE: one single-branch VAE a modality, nothing shared; latents are concatenated.

    Args:
        modalities: number of modalities.
        options: of every :class:`MultiBranchVAE`.

    Example:
        >>> network = SeparateVAE(modalities=2, channels=(4, 8), dense=16, latent=4)
        >>> network.latent, network(torch.zeros(3, 2, 32, 32)).shape
        (8, torch.Size([3, 2, 32, 32]))
    """

    def __init__(
        self,
        *,
        modalities: int = 2,
        patch: int = 32,
        channels: Sequence[int] = (32, 64, 128),
        dense: int = 256,
        latent: int = 32,
    ) -> None:
        super().__init__()
        self.modalities, self.patch, self.latent, self.fusion = modalities, patch, modalities * latent, "joint"
        self.single = latent
        self.parts = nn.ModuleList(
            [
                MultiBranchVAE(modalities=1, patch=patch, channels=channels, dense=dense, latent=latent)
                for _ in range(modalities)
            ]
        )

    def encode(self, image: Tensor, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latents side by side, ``(B, K latent)``; a missing one has the prior's.

        Args:
            image: patches in the network's range, ``(B, K, P, P)``.
            available: see :meth:`MultiBranchVAE.encode`.
        """
        means: list[Tensor] = []
        log_variances: list[Tensor] = []
        for k, part in enumerate(self.parts):
            one: Tensor | None = None
            if available is not None:
                one = available[k : k + 1]
            mean, log_variance = part.encode(image[:, k : k + 1], one)  # type: ignore[operator]
            means.append(mean)
            log_variances.append(log_variance)
        return torch.cat(means, 1), torch.cat(log_variances, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return the patches ``(B, K, P, P)`` of latents ``(B, K latent)``, in the network's range."""
        patches: list[Tensor] = []
        for k, part in enumerate(self.parts):
            patches.append(part.decode(z[:, k * self.single : (k + 1) * self.single]))  # type: ignore[operator]
        return torch.cat(patches, 1)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the reconstruction ``(B, K, P, P)`` from the means of the latents; ``timestep`` is ignored."""
        return self.decode(self.encode(image)[0])


def fuse_gaussians(means: Tensor, log_variances: Tensor, weights: Tensor, prior_weight: float) -> tuple[Tensor, Tensor]:
    r"""Return the normalised product ``p^{w_0} prod_k q_k^{w_k}`` of normal distributions and a standard normal prior.

    Precisions add, ``T = w_0 I + sum_k w_k T_k``, and ``mu = T^{-1} sum_k w_k T_k mu_k``. All weights one: the product
    of experts; weights that sum to one: the geometric mean.

    Args:
        means: ``(B, K, latent)``.
        log_variances: ``(B, K, latent)``.
        weights: ``w_k``, ``(K,)``; 0 leaves an expert out.
        prior_weight: ``w_0``.

    Returns:
        Mean and log-variance, ``(B, latent)`` each.
    """
    precisions = weights.reshape(1, -1, 1) * torch.exp(-log_variances)
    total = prior_weight + precisions.sum(1)
    return (precisions * means).sum(1) / total, -torch.log(total)
