"""The evidence bound of a patch autoencoder: what its loss needs, in one pass through the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .vae import MultiBranchVAE, SeparateVAE, fuse_gaussians

__all__ = ["EvidencePass", "gaussian_divergence"]


class EvidencePass(nn.Module):
    r"""What the evidence bound of a patch autoencoder needs, in one pass: reconstructions and the divergence.

    * joint head, separate autoencoders: one draw of ``q(z | x)``, and ``KL(q || N(0, I))``;
    * product of experts: the same for the product, and for every expert with the prior alone, so that each of them
      can stand in for a missing modality; the mean over these ``K + 1`` bounds;
    * Jensen-Shannon: one draw of every expert, and ``sum_k w KL(q_k || f) + w KL(N(0, I) || f)`` with the geometric
      mean ``f`` of experts and prior and ``w = 1 / (K + 1)``.

    Args:
        network: the autoencoder.

    References:
        pinton2024, wu2018, sutter2020
    """

    def __init__(self, network: MultiBranchVAE | SeparateVAE) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions ``(S, N, K, P, P)`` and divergences ``(N,)`` in nats.

        Args:
            image: patches ``(N, K, P, P)``.
            noise: standard normal numbers ``(S', N, latent)``, at least as many draws as there are reconstructions.
        """
        network = self.network
        if network.fusion == "joint":
            mean, log_variance = network.encode(image)
            means, log_variances = mean[:, None], log_variance[:, None]
            divergence = gaussian_divergence(mean, log_variance)
        else:
            means, log_variances = network.experts(image)  # type: ignore[operator]
            count = means.shape[1]
            ones = means.new_ones(count)
            if network.fusion == "poe":
                alone = [
                    fuse_gaussians(means, log_variances, one, 1.0) for one in torch.eye(count, device=means.device)
                ]
                bounds = [fuse_gaussians(means, log_variances, ones, 1.0), *alone]
                means, log_variances = (torch.stack(values, 1) for values in zip(*bounds, strict=True))
                divergence = gaussian_divergence(means, log_variances).mean(1)
            else:
                weight = 1.0 / (count + 1)
                mean, log_variance = fuse_gaussians(means, log_variances, weight * ones, weight)
                prior = torch.zeros_like(mean)
                divergence = weight * gaussian_divergence(prior, prior, mean, log_variance)
                apart = gaussian_divergence(means, log_variances, mean[:, None], log_variance[:, None])
                divergence = divergence + weight * apart.sum(1)
        draws = means.shape[1]
        if len(noise) < draws:
            raise ValueError(f"noise: expected at least {draws} draws for {network.fusion!r}, got {len(noise)}")
        z = means.movedim(1, 0) + torch.exp(0.5 * log_variances.movedim(1, 0)) * noise[:draws]
        decoded = network.decode(z.flatten(0, 1))
        return decoded.unflatten(0, (draws, -1)), divergence


def gaussian_divergence(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor | None = None, other_log_variance: Tensor | None = None
) -> Tensor:
    """Return ``KL(N(mean, var) || N(other))`` in nats, summed over the last axis; the standard normal by default.

    Example:
        >>> gaussian_divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)).item()
        0.5
    """
    other_mean = torch.zeros_like(mean) if other_mean is None else other_mean
    other_log_variance = torch.zeros_like(mean) if other_log_variance is None else other_log_variance
    squared = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    ratio = log_variance - other_log_variance
    return 0.5 * (squared + torch.exp(ratio) - 1 - ratio).sum(-1)
