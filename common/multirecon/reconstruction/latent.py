"""Reconstruction with a generative model of patches: images close to the range of a decoder, all from one latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..measurement import Measurement
from ..priors import IntensityScaling
from ..priors.patches import PatchGrid
from ..solvers.lbfgs import lbfgs
from ..space import ImageSpace
from .base import Callback, ImageSource
from .latent_steps import Block, LatentMethod, Observer, relative_change
from .tuning import Tuning

__all__ = ["LatentADMM", "LatentReconstruction"]


class LatentReconstruction(LatentMethod):
    r"""Alternating minimisation over images and latents: every patch is to be close to what a decoder can make.

    .. math::
        \min_{x_k \ge 0} \min_z \sum_k \eta_k \Bigl[ -\log p(y_k \mid A_k x_k) + \frac{w_k}{2 \bar D} \sum_p
            \|G_k(z_p) - P_p x_k\|^2 \Bigr] + \frac{\alpha}{\bar D} \sum_p \tfrac12 \|z_p\|^2

    with overlapping patches ``P_p`` (pixel ``j`` in ``D_j`` of them, ``bar D = (patch / stride)^2`` inside the image),
    one latent ``z_p`` for all modalities, and residuals in the network's range. Each outer iteration

    1. minimises over the latents of all patches by L-BFGS (from the encoder's mean in the first one, from the last
       latents after that),
    2. aggregates, ``v_k = D^{-1} sum_p P_p^T G_k(z_p)``: with the strength ``rho_j = w_k D_j / bar D`` the penalty is
       ``rho / 2 |x_k - v_k|^2`` and a constant,
    3. does ``inner`` descent steps on every image, see :meth:`image_step`.

    All three lower the objective, which the ``observer`` is told. With ``weight = 0`` the latents are left out and the
    steps are those of MLEM and weighted least squares. A clean modality stays as it is and speaks through the latents;
    a missing one has no terms, and is the aggregate ``v``. The weights ``w`` are precisions per pixel: the same at
    every dose.

    Args:
        space: the stack of the autoencoder.
        scaling: physical units to the network's range; affine for every modality.
        tuning: settings by kind of block: ``"weight"`` ``w`` and ``"balance"`` ``eta``.
        stride: distance of the patches.
        outer: outer iterations.
        inner: image steps of one of them.
        latent_iterations: L-BFGS iterations of one of them.
        first_latent_iterations: those of the first one.
        alpha: weight of the latents' normal prior.
        accelerate: speed the image steps of CT up by conjugate gradients, see :meth:`image_step`.
        random_origin: draw another origin of the patches in every outer iteration (latents then start from the encoder
            each time, and objectives of different iterations cannot be compared).
        tolerance: relative change of the image at which the iteration stops.
        smoothness: smoothness of the first image of CT and MR, see
            :class:`~multirecon.reconstruction.PenalisedLeastSquares`.
        latent_start: ``"encoder"`` or ``"random"``.
        observer: called with ``iteration``, ``objective``, ``data``, ``penalty``, ``change`` (``(B,)`` each),
            ``latents`` ``(B, N, latent)`` and ``image`` before the first and after every outer iteration.
        source: how an image stack becomes a Measurement.

    References:
        pinton2024, depierro1995
    """

    def __init__(
        self,
        space: ImageSpace,
        *,
        scaling: IntensityScaling,
        tuning: Tuning,
        stride: int = 8,
        outer: int = 20,
        inner: int = 3,
        latent_iterations: int = 10,
        first_latent_iterations: int = 20,
        alpha: float = 1.0,
        accelerate: bool = True,
        random_origin: bool = False,
        tolerance: float = 1e-4,
        smoothness: float = 30.0,
        latent_start: Literal["encoder", "random"] = "encoder",
        observer: Observer | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space, scaling=scaling, tuning=tuning, stride=stride, outer=outer, inner=inner,
                         latent_iterations=latent_iterations, first_latent_iterations=first_latent_iterations,
                         alpha=alpha, accelerate=accelerate, smoothness=smoothness, latent_start=latent_start,
                         observer=observer, source=source)  # fmt: skip
        self.random_origin, self.tolerance = random_origin, tolerance

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class."""
        vae = self.checked(network)
        blocks = self.blocks(measurement)
        x = self.start(measurement, blocks)
        coupled = any(b.weight * b.balance > 0 for b in blocks)
        z: Tensor | None = None
        grid = self._grid(vae, generator)
        if coupled:
            z, objective = self._latents(vae, grid, blocks, x, None, 0, generator)
            self._tell(0, blocks, x, objective, z)
        for iteration in range(1, self.outer + 1):
            before = x
            if coupled:
                if self.random_origin and iteration > 1:
                    grid, z = self._grid(vae, generator), None
                steps = self.first_latent_iterations if iteration == 1 else self.latent_iterations
                z, _ = self._latents(vae, grid, blocks, x, z, steps, generator)
                with torch.no_grad():
                    target = grid.aggregate(self._decoded(vae, z, len(x)))
                    x = self._images(blocks, x, self.scaling.inverse(target), grid)
                self._tell(iteration, blocks, x, self._penalty(vae, grid, blocks, x, z), z, before)
            else:
                with torch.no_grad():
                    x = self._images(blocks, x, torch.zeros_like(x), grid)
                self._tell(iteration, blocks, x, torch.zeros(len(x)), None, before)
            if callback is not None:
                callback(iteration, x)
            if bool((relative_change(x, before) < self.tolerance).all()):
                break
        return x

    def _grid(self, vae: Any, generator: torch.Generator) -> PatchGrid:
        assert self.space is not None
        origin = (0, 0)
        if self.random_origin:
            origin = tuple(int(v) for v in torch.randint(self.stride, (2,), generator=generator))  # type: ignore[assignment]
        return PatchGrid(self.space.shape, patch=vae.patch, stride=self.stride, origin=origin)

    def _decoded(self, vae: Any, z: Tensor, batch: int) -> Tensor:
        return vae.decode(z).unflatten(0, (batch, -1))

    def _images(self, blocks: Sequence[Block], x: Tensor, target: Tensor, grid: PatchGrid) -> Tensor:
        parts = []
        for b in blocks:
            part, anchor = (t[:, b.channel : b.channel + 1] for t in (x, target))
            if not b.measured:
                parts.append(anchor)
            elif b.operator is None:
                parts.append(part)
            else:
                rho = b.weight / self.units[b.name] ** 2 / grid.overlap * grid.counts.to(x)
                parts.append(self.image_step(b, part, anchor, rho))
        return torch.cat(parts, dim=1)

    def _misfit(self, vae: Any, blocks: Sequence[Block], z: Tensor, patches: Tensor, overlap: float) -> Tensor:
        """Return the penalty of every patch, ``(B N,)``."""
        weights = torch.tensor([b.weight * b.balance for b in blocks], device=z.device, dtype=z.dtype)
        errors = (vae.decode(z) - patches).square().flatten(2).sum(2)
        return (0.5 * (errors @ weights) + 0.5 * self.alpha * z.square().sum(1)) / overlap

    def _latents(
        self,
        vae: Any,
        grid: PatchGrid,
        blocks: Sequence[Block],
        x: Tensor,
        z: Tensor | None,
        steps: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return the latents ``(B N, latent)`` after some L-BFGS iterations, and the penalty ``(B,)``."""
        patches = grid.extract(self.scaling(x)).flatten(0, 1)
        if z is None:
            z = self.first_latents(vae, patches, blocks, generator)
        found = lbfgs(lambda v: self._misfit(vae, blocks, v, patches, grid.overlap), z, iterations=steps)
        return found.z, found.value.double().reshape(len(x), -1).sum(1)

    @torch.no_grad()
    def _penalty(self, vae: Any, grid: PatchGrid, blocks: Sequence[Block], x: Tensor, z: Tensor) -> Tensor:
        patches = grid.extract(self.scaling(x)).flatten(0, 1)
        return self._misfit(vae, blocks, z, patches, grid.overlap).double().reshape(len(x), -1).sum(1)

    @torch.no_grad()
    def _tell(
        self,
        iteration: int,
        blocks: Sequence[Block],
        x: Tensor,
        penalty: Tensor,
        z: Tensor | None,
        before: Tensor | None = None,
    ) -> None:
        if self.observer is None:
            return
        data = self.data_terms(blocks, x)
        change = torch.full((len(x),), torch.inf) if before is None else relative_change(x, before)
        latents = None if z is None else z.unflatten(0, (len(x), -1))
        self._report(iteration=iteration, objective=data + penalty.to(data), data=data, penalty=penalty, change=change,
                     latents=latents, image=x)  # fmt: skip


class LatentADMM(LatentMethod):
    r"""The same model with the constraint ``x_k = G_k(z)`` on whole images, by ADMM with scaled duals ``u_k``.

    ``G_k(z)`` is the aggregate of the decoded patches. Each iteration does image steps towards ``G_k(z) - u_k`` with
    ``rho_k = w_k``, L-BFGS steps on ``sum_k eta_k rho_k / 2 |x_k + u_k - G_k(z)|^2 + alpha / (2 bar D) |z|^2`` over
    all latents of an image together, and ``u_k <- u_k + x_k - G_k(z)``. Non-convex: no value is promised to fall; the
    ``observer`` is told the primal residual ``|x - G(z)| / |x|``.

    Args: as :class:`LatentReconstruction`.

    References:
        gautier2024, boyd2011
    """

    def __init__(
        self,
        space: ImageSpace,
        *,
        scaling: IntensityScaling,
        tuning: Tuning,
        stride: int = 8,
        outer: int = 20,
        inner: int = 3,
        latent_iterations: int = 10,
        first_latent_iterations: int = 20,
        alpha: float = 1.0,
        accelerate: bool = True,
        smoothness: float = 30.0,
        latent_start: Literal["encoder", "random"] = "encoder",
        observer: Observer | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space, scaling=scaling, tuning=tuning, stride=stride, outer=outer, inner=inner,
                         latent_iterations=latent_iterations, first_latent_iterations=first_latent_iterations,
                         alpha=alpha, accelerate=accelerate, smoothness=smoothness, latent_start=latent_start,
                         observer=observer, source=source)  # fmt: skip

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class."""
        vae = self.checked(network)
        assert self.space is not None
        blocks = self.blocks(measurement)
        x = self.start(measurement, blocks)
        grid = PatchGrid(self.space.shape, patch=vae.patch, stride=self.stride)
        weights = torch.tensor([b.weight * b.balance for b in blocks]).to(x).reshape(1, -1, 1, 1)
        z = self.first_latents(vae, grid.extract(self.scaling(x)).flatten(0, 1), blocks, generator)
        z = z.unflatten(0, (len(x), -1)).flatten(1)

        def generate(z: Tensor) -> Tensor:
            patches = vae.decode(z.unflatten(1, (-1, vae.latent)).flatten(0, 1))
            return grid.aggregate(patches.unflatten(0, (len(x), -1)))

        dual = torch.zeros_like(x)
        for iteration in range(1, self.outer + 1):
            aim = self.scaling(x) + dual

            def misfit(z: Tensor, aim: Tensor = aim) -> Tensor:
                error = 0.5 * (weights * (generate(z) - aim).square()).flatten(1).sum(1)
                return error + 0.5 * self.alpha / grid.overlap * z.square().sum(1)

            steps = self.first_latent_iterations if iteration == 1 else self.latent_iterations
            z = lbfgs(misfit, z, iterations=steps).z
            with torch.no_grad():
                made = generate(z)
                target = self.scaling.inverse(made - dual)
                parts = []
                for b in blocks:
                    part, anchor = (t[:, b.channel : b.channel + 1] for t in (x, target))
                    if b.operator is not None:
                        rho = torch.full_like(part, b.weight / self.units[b.name] ** 2)
                        part = self.image_step(b, part, anchor, rho)
                    elif not b.measured:
                        part = self.scaling.inverse(made)[:, b.channel : b.channel + 1]
                    parts.append(part)
                x = torch.cat(parts, dim=1)
                gap = self.scaling(x) - made
                dual = dual + gap * (weights > 0)
            residual = gap.flatten(1).norm(dim=1) / self.scaling(x).flatten(1).norm(dim=1)
            self._report(iteration=iteration, residual=residual, data=self.data_terms(blocks, x))
            if callback is not None:
                callback(iteration, x)
        return x
