r"""Firm nonexpansiveness of a denoiser ``D``: the Jacobian of ``Q = 2 D - Id``, its norm, penalty and worst pairs.

``D`` is firmly nonexpansive (the resolvent of a monotone operator) exactly when ``Q`` is 1-Lipschitz, and then
plug-and-play ADMM converges for every convex data term. Power iteration on ``J^T J`` gives ``|J_Q|`` at a point, from
below; a pair of images gives the ratio ``|Q(a) - Q(b)| / |a - b|``, a lower bound of the Lipschitz constant, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp, linearize, vjp

__all__ = [
    "NonexpansiveLoss",
    "ascend_ratio",
    "guided",
    "jacobian_norms",
    "krylov_norms",
    "lipschitz_ratios",
    "reflection",
]

Map = Callable[[Tensor], Tensor]


def reflection(denoiser: Map) -> Map:
    """Return ``Q = 2 D - Id``."""

    def Q(x: Tensor) -> Tensor:
        return 2 * denoiser(x) - x

    return Q


@torch.no_grad()
def jacobian_norms(
    function: Map,
    points: Tensor,
    *,
    iterations: int = 100,
    vectors: Tensor | None = None,
    generator: torch.Generator | None = None,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the spectral norms of the Jacobian ``(B,)`` and the right singular vectors, by power iteration.

    Args:
        function: differentiable map of batches ``(B, ...)`` that treats samples one by one and keeps their shape.
        points: ``(B, ...)``.
        iterations: steps; the norms grow towards their limit from below.
        vectors: warm start ``(B, ...)``; random by default.
        generator: of the random start, seeded with 0 by default.
        tolerance: stop when no norm changed by more than this relative amount.

    Returns:
        Norms ``(B,)`` and unit vectors like ``points``.
    """
    if vectors is None:
        generator = generator or torch.Generator().manual_seed(0)
        vectors = torch.randn(points.shape, generator=generator, dtype=points.dtype).to(points.device)
    v = _unit(vectors)
    norms = torch.zeros(len(points), dtype=points.dtype, device=points.device)
    pull = vjp(function, points)[1]
    for _ in range(iterations):
        previous = norms
        image = jvp(function, (points,), (v,))[1]
        norms = _norm(image)
        v = _unit(pull(image)[0])
        if tolerance and bool(((norms - previous).abs() <= tolerance * norms).all()):
            break
    return norms, v


@torch.no_grad()
def krylov_norms(
    function: Map,
    points: Tensor,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the spectral norms of the Jacobian ``(B,)`` by Golub-Kahan bidiagonalisation, re-orthogonalised.

    After ``k`` products with ``J`` and ``J^T`` the estimate is the largest over the whole Krylov space, in which the
    vector of ``k`` power iterations is one: never smaller, and as accurate after about the square root of as many.

    Args:
        function: as in :func:`jacobian_norms`.
        points: ``(B, ...)``.
        iterations: bound on the products with ``J`` and ``J^T``; the norms grow towards their limit from below.
        tolerance: end when every sample's residual ``|J^T u - s v|`` of its singular pair is at most this times ``s``.
        generator: of the random start, seeded with 0 by default.

    References:
        golub1965
    """
    generator = generator or torch.Generator().manual_seed(0)
    v = _unit(torch.randn(points.shape, generator=generator, dtype=points.dtype).to(points.device))
    push, pull = linearize(function, points)[1], vjp(function, points)[1]
    left: list[Tensor] = []
    right = [v.flatten(1)]
    diagonal: list[Tensor] = []
    above: list[Tensor] = []
    norms = torch.zeros(len(points), dtype=points.dtype, device=points.device)
    for k in range(iterations):
        u = push(v).flatten(1)
        if k:
            u = u - above[-1][:, None] * left[-1]
        u = _orthogonal(u, left)
        diagonal.append(_norm(u))
        left.append(_unit(u))
        w = pull(left[-1].reshape(points.shape))[0].flatten(1) - diagonal[-1][:, None] * right[-1]
        w = _orthogonal(w, right)
        above.append(_norm(w))
        right.append(_unit(w))
        v = right[-1].reshape(points.shape)
        small = torch.diag_embed(torch.stack(diagonal, 1).double())
        if k:
            small = small + torch.diag_embed(torch.stack(above[:-1], 1).double(), offset=1)
        U, s, _ = torch.linalg.svd(small)
        norms = s[:, 0].to(points)
        if bool((above[-1] * U[:, -1, 0].abs().to(points) <= tolerance * norms).all()):
            break
    return norms


def guided(denoiser: Map, guide: Tensor) -> Map:
    """Return the map of images ``(B, C, ...)`` that a denoiser is beside a fixed guide ``(B, G, ...)``, ``G >= 0``."""
    return lambda x: denoiser(torch.cat([x, guide], dim=1))


def lipschitz_ratios(function: Map, a: Tensor, b: Tensor) -> Tensor:
    """Return ``|f(a) - f(b)| / |a - b|`` of pairs ``(B, ...)``: ``(B,)``, zero for equal images."""
    below = _norm(a - b)
    positive = below > 0
    ratio = _norm(function(a) - function(b)) / torch.where(positive, below, torch.ones_like(below))
    return torch.where(positive, ratio, torch.zeros_like(ratio))


def ascend_ratio(
    function: Map, a: Tensor, b: Tensor, *, steps: int = 50, rate: float = 0.02, radius: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Look for the worst pair: gradient ascent on ``|f(a) - f(b)| / |a - b|`` over both images, from given pairs.

    Each step moves ``a`` and ``b`` along the normalised gradient by ``rate |a - b|``; a step that lowers a ratio is
    taken back and halved, so that the ratio of every pair only rises.

    Args:
        function: as in :func:`jacobian_norms`.
        a: first images ``(B, ...)``; float64 keeps differences of close images accurate.
        b: second images.
        steps: number of steps.
        rate: first step length relative to the distance of the pair.
        radius: largest distance of each image from its start, or None for no bound.

    Returns:
        The best ratios ``(B,)`` and the pairs that attain them.
    """
    start, pair = torch.stack([a, b]), torch.stack([a, b]).detach()
    length = torch.full((a.shape[0],), rate, dtype=a.dtype, device=a.device)
    best = torch.full_like(length, -torch.inf)
    kept, slope = pair, torch.zeros_like(pair)
    for _ in range(steps + 1):
        trial = pair.detach().requires_grad_()
        with torch.enable_grad():
            ratio = lipschitz_ratios(function, trial[0], trial[1])
            (gradient,) = torch.autograd.grad(ratio.sum(), trial)
        ratio = ratio.detach()
        better = ratio > best
        best = torch.where(better, ratio, best)
        kept = torch.where(_wide(better, pair), pair, kept)
        slope = torch.where(_wide(better, pair), gradient, slope)
        length = torch.where(better, 1.2 * length, 0.5 * length)
        size = torch.linalg.vector_norm(slope.movedim(1, 0).flatten(1), dim=1)
        size = torch.where(size > 0, size, torch.ones_like(size))
        pair = kept + _wide(length * _norm(kept[0] - kept[1]) / size, pair) * slope
        if radius is not None:
            move = pair - start
            far = torch.linalg.vector_norm(move.flatten(2), dim=2) / radius
            pair = start + move / far.clamp_min(1).reshape(*far.shape, *[1] * (pair.ndim - 2))
    return best, kept[0], kept[1]


class NonexpansiveLoss(nn.Module):
    r"""Half the mean squared error plus ``w`` times the mean over points ``p`` of ``max(|J_Q(p)|^2, 1 - margin)``.

    Points are drawn from the segments between the clean image and what the denoiser makes of the noisy one, as
    published, and, every other one, between the clean and the noisy image, where the iterates of plug-and-play lie.
    A point stays for as many steps as there are points, and its successor starts from its vector and a little noise: so
    warm-started, few power iterations a step suffice. They run without a graph; the gradient is that of
    ``|J_Q(p) v|^2`` at the vector ``v`` found, which is the gradient of the squared norm where the leading singular
    value is simple. The published implementation keeps the largest norm of the batch instead of the mean.

    With ``hot`` every third point has a hot disc of random place, size and contrast, as no training image has: the
    bound is wanted for unseen lesions, too, and what is trained on ordinary images only does not hold there.

    With ``canvas`` a patch lies at a random place of a larger field, empty or, every other time, with white noise of a
    random level up to ``air``: an image has directions that no patch has room for, and the bound is wanted for images.
    A guide lies at the same place of an empty field.

    Args:
        network: the denoiser that is trained, ``network(image)``.
        weight: ``w``; 0 for plain denoising, and then no Jacobian is computed.
        margin: slack below 1 of the squared norm that is not penalised.
        points: points a step.
        patch: side of the patches in pixels.
        iterations: power iterations a step.
        autocast: mixed precision of the Jacobian, ``"bfloat16"`` or None.
        seed: seed of the points.
        channels: channels of the images.
        guides: channels of a guide that the network sees behind the image; they are the last of the target.
        hot: largest contrast of the discs (times the image, plus that many units); 0 for none.
        canvas: side of the points in pixels, at least that of the patches; 0 for points as large as patches.
        air: largest standard deviation of the noise around a patch.

    Raises:
        ValueError: if a number is out of range.

    References:
        pesquet2021
    """

    points: Tensor
    vectors: Tensor
    drawn: Tensor
    guides: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        weight: float = 1e-3,
        margin: float = 0.05,
        points: int = 4,
        patch: int = 48,
        iterations: int = 3,
        autocast: str | None = None,
        seed: int = 0,
        channels: int = 1,
        guides: int = 0,
        hot: float = 0.0,
        canvas: int = 0,
        air: float = 0.2,
    ) -> None:
        super().__init__()
        if weight < 0 or not 0 <= margin < 1 or points < 1 or iterations < 1 or hot < 0:
            raise ValueError("weight, margin, points, iterations, hot: expected >= 0, 0 <= margin < 1, >= 1, >= 1 and "
                             f">= 0, got {weight}, {margin}, {points}, {iterations}, {hot}")  # fmt: skip
        self.hot, self.air, side = hot, air, max(canvas, patch)
        self._network = [network]  # in a list: its weights are not the loss's
        self.weight, self.margin, self.iterations, self.seed = weight, margin, iterations, seed
        self.autocast = None if autocast is None else getattr(torch, autocast)
        self.register_buffer("points", torch.zeros(points, channels, side, side))
        self.register_buffer("vectors", torch.zeros(points, channels, side, side))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.long))
        self.register_buffer("guides", torch.zeros(points, guides, side, side), persistent=guides > 0)
        self.norm = float("nan")

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            prediction: denoised patches ``(B, C, H, W)``.
            target: clean and noisy patches and their guides ``(B, 2 C + G, H, W)``.
        """
        clean, noisy, guides = target.tensor_split([prediction.shape[1], 2 * prediction.shape[1]], dim=1)
        loss = 0.5 * (prediction - clean).square().mean()
        if self.weight == 0:
            return loss
        self._draw(prediction.detach(), clean, noisy, guides)
        Q = reflection(guided(self._network[0], self.guides))
        with torch.autocast(clean.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            _, self.vectors = jacobian_norms(Q, self.points, iterations=self.iterations, vectors=self.vectors)
            image = jvp(Q, (self.points,), (self.vectors,))[1]
        squared = image.float().square().flatten(1).sum(1)
        self.norm = float(squared.detach().max().sqrt())
        return loss + self.weight * squared.clamp_min(1 - self.margin).mean()

    def _draw(self, denoised: Tensor, clean: Tensor, noisy: Tensor, guides: Tensor) -> None:
        """Replace the oldest point (all of them at first) by a new one with a random vector."""
        count = len(self.points)
        number = int(self.drawn)
        generator = torch.Generator().manual_seed((self.seed << 32) + number)
        places = [number % count] if number >= count else range(count)
        for k, place in enumerate(places):
            sample = (number + k) % len(clean)
            other = denoised if (number + k) % 2 else noisy
            share = float(torch.rand((), generator=generator))
            point = share * other[sample] + (1 - share) * clean[sample]
            if self.hot and (number + k) % 3 == 2:
                point = self._heated(point, generator)
            self.points[place], corner = self._surrounded(point, generator)
            if guides.shape[1]:
                (top, left), size = corner, guides.shape[-1]
                self.guides[place] = 0.0
                self.guides[place, :, top : top + size, left : left + size] = guides[sample]
            fresh = torch.randn(self.vectors.shape[1:], generator=generator).to(self.vectors)
            # what stretches one image stretches another: a convolution's worst directions move along slowly
            self.vectors[place] = self.vectors[place] + 0.3 * fresh / torch.linalg.vector_norm(fresh)
        self.drawn += 1 if number >= count else count

    def _surrounded(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, int]]:
        """Return an image ``(C, H, W)`` in a field of the size of the points, and the place of its first pixel."""
        side, size = self.points.shape[-1], image.shape[-1]
        if side == size:
            return image, (0, 0)
        noisy, level, row, column = torch.rand(4, generator=generator).tolist()
        noise = torch.randn(len(image), side, side, generator=generator).to(image)
        field = self.air * level * noise if noisy < 0.5 else torch.zeros_like(noise)
        top, left = (int(share * (side - size + 1)) for share in (row, column))
        field[:, top : top + size, left : left + size] = image
        return field, (top, left)

    def _heated(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return an image ``(C, H, W)`` with a hot disc."""
        row, column, size, heat = torch.rand(4, generator=generator).tolist()
        rows, columns = (torch.arange(n, device=image.device) for n in image.shape[1:])
        away = ((rows[:, None] - row * len(rows)) ** 2 + (columns - column * len(columns)) ** 2).sqrt()
        contrast = 1 + (self.hot - 1) * heat
        return torch.where(away < 2 + 4 * size, contrast * image + contrast, image)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _orthogonal(x: Tensor, basis: list[Tensor]) -> Tensor:
    """Return ``x`` ``(B, N)`` without its parts along orthonormal vectors ``(B, N)`` each, taken out twice."""
    if basis:
        span = torch.stack(basis, 1)
        for _ in range(2):
            x = x - torch.einsum("bkn,bk->bn", span, torch.einsum("bkn,bn->bk", span, x))
    return x


def _unit(x: Tensor) -> Tensor:
    norm = _norm(x)
    return x / _wide(torch.where(norm > 0, norm, torch.ones_like(norm)), x[None])


def _wide(values: Tensor, pair: Tensor) -> Tensor:
    """Return values ``(B,)`` with the axes of a sample of ``pair`` ``(2, B, ...)`` appended."""
    return values.reshape(-1, *[1] * (pair.ndim - 2))
