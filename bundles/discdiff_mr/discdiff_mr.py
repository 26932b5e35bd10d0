"""DisC-Diff: a U-Net with three encoders whose deepest features are split into common and distinct parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multirecon.measurement import Measurement
from multirecon.networks.unet import Attention, ResidualBlock, Stage, timestep_embedding
from multirecon.operators import LinearOperator
from multirecon.priors import SampleNoise
from multirecon.priors.conditional import CHAINS, ConditionalDiffusion
from multirecon.priors.sampling import Correction
from multirecon.reconstruction import Capability, ImageSource, PosteriorSampler
from multirecon.solvers.cg import conjugate_gradient
from multirecon.space import ImageSpace

__all__ = ["STREAMS", "DisentangledSampling", "DisentangledUNet", "SqueezeExcitation", "StreamEncoder",
           "degraded_image"]  # fmt: skip

#: The three images of one slice, in the order of the input's channels.
STREAMS = ("noisy target", "degraded target", "reference")


class SqueezeExcitation(nn.Module):
    r"""Channel attention ``h * sigmoid(W_2 relu(W_1 mean(h)))`` without biases.

    Args:
        channels: channels of the features.
        reduction: ``channels / reduction`` is the width in between.

    References:
        hu2018
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the weighted features ``(B, channels, H, W)``."""
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(image.mean(dim=(2, 3))))))
        return image * weight[:, :, None, None]


class StreamEncoder(nn.Module):
    """Encoder of one image: every entry of the result is a skip, the last one the deepest features.

    Args:
        stem: first convolution, one channel to the width of the network.
        stages: residual blocks with attention and changes of resolution.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the features of all entries for an image ``(B, patch ** 2, H / patch, W / patch)``.

        Args:
            image: one image of the slice, its blocks of pixels as channels.
            embedding: time embedding ``(B, 4 C)``.
        """
        hidden = self.stem(image)
        entries = [hidden]
        for stage in self.stages:
            hidden = stage(hidden, embedding)
            entries.append(hidden)
        return entries


class DisentangledUNet(nn.Module):
    r"""``(x_t, degraded target, reference), t -> (prediction, variance interpolation)``.

    Three encoders of one architecture and one initial value read the noisy target, the degraded target and the
    reference. The decoder's skips are their mean. Of the deepest features ``h_i`` (``D`` channels) shared convolutions
    keep the common part, ``c_i = silu(K_c h_i)``, and the distinct part, ``d_i = silu(K_d h_i)`` (``D / 2`` channels
    each); the decoder continues from

    .. math:: \mathrm{silu}\big(W [S_0 \tfrac13(c_1 + c_2 + c_3),\ S_1 d_1,\ S_2 d_2,\ S_3 d_3]\big)

    with channel attentions ``S`` of their own. Training looks at ``c_i`` and ``S_i d_i`` (:meth:`disentangle`).

    Args:
        channels: width of each level, highest resolution first.
        num_res_blocks: residual blocks a level in each encoder; the decoder has one more.
        attention_levels: which levels have attention.
        num_head_channels: width of an attention head.
        norm_num_groups: groups of every normalisation.
        dropout: dropout probability inside the residual blocks.
        patch: the network works on blocks of ``patch x patch`` pixels as channels (1: on pixels, as published): the
            highest resolution, where a processor spends most of its time, is left out.

    Raises:
        ValueError: if lengths disagree, or a width is not divisible as the normalisation needs.

    References:
        mao2023, dhariwal2021

    Example:
        >>> net = DisentangledUNet(channels=(8, 16), num_res_blocks=1, attention_levels=(False, True),
        ...                        num_head_channels=8, norm_num_groups=4)
        >>> net(torch.ones(1, 3, 8, 8), torch.tensor([10.0])).abs().max().item()
        0.0
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (96, 96, 192, 192, 288, 288),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, False, True, True, True),
        num_head_channels: int = 48,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        levels, width, deepest = len(channels), channels[0], channels[-1]
        if not levels or len(attention_levels) != levels:
            raise ValueError(
                f"channels, attention_levels: expected one entry a level, got {levels} and {len(attention_levels)}"
            )
        if any(c % norm_num_groups or c % 2 for c in channels):
            raise ValueError(f"channels: expected even multiples of norm_num_groups={norm_num_groups}, got {channels}")
        self.embedding_width = width
        self.patch = patch
        self.factor = patch * 2 ** (levels - 1)
        self.time1 = nn.Linear(width, 4 * width)
        self.time2 = nn.Linear(4 * width, 4 * width)

        def block(inside: int, outside: int, resample: str = "none") -> nn.Module:
            return ResidualBlock(
                2,
                inside,
                out_channels=outside,
                embedding_channels=4 * width,
                norm_num_groups=norm_num_groups,
                dropout=dropout,
                resample=resample,
            )

        def attention(features: int, wanted: bool = True) -> nn.Module | None:
            if not wanted:
                return None
            return Attention(features, head_channels=num_head_channels, norm_num_groups=norm_num_groups)

        def encoder() -> tuple[StreamEncoder, list[int]]:
            stages, widths, now = [], [width], width
            for level, features in enumerate(channels):
                for _ in range(num_res_blocks):
                    stages.append(Stage(block(now, features), attention(features, attention_levels[level])))
                    now = features
                    widths.append(now)
                if level < levels - 1:
                    stages.append(Stage(block(now, now, "down")))
                    widths.append(now)
            return StreamEncoder(nn.Conv2d(patch**2, width, 3, padding=1), stages), widths

        self.noisy, skips = encoder()
        self.degraded, _ = encoder()
        self.reference, _ = encoder()
        # one initial value, separate storage
        self.degraded.load_state_dict(self.noisy.state_dict())
        self.reference.load_state_dict(self.noisy.state_dict())

        half = deepest // 2
        self.common = nn.Conv2d(deepest, half, 3, padding=1)
        self.distinct = nn.Conv2d(deepest, half, 3, padding=1)
        self.common_attention = SqueezeExcitation(half)
        self.distinct_attention = nn.ModuleList([SqueezeExcitation(half) for _ in STREAMS])
        self.reduce = nn.Conv2d(4 * half, deepest, 1)
        self.middle1 = Stage(block(deepest, deepest), attention(deepest))
        self.middle2 = Stage(block(deepest, deepest))

        decoder, now = [], deepest
        for level in reversed(range(levels)):
            for index in range(num_res_blocks + 1):
                outside = channels[level]
                up = block(outside, outside, "up") if level and index == num_res_blocks else None
                inner = block(now + skips.pop(), outside)
                decoder.append(Stage(inner, attention(outside, attention_levels[level]), up))
                now = outside
        self.decoder = nn.ModuleList(decoder)
        self.norm = nn.GroupNorm(norm_num_groups, now)
        self.head = nn.Conv2d(now, 2 * patch**2, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return prediction and variance interpolation, ``(B, 2, H, W)``.

        Args:
            image: noisy target, degraded target and reference ``(B, 3, H, W)``, sides divisible by
                ``patch * 2 ** (levels - 1)``.
            timestep: diffusion time in steps ``(B,)`` or a single number; 0 where it is not given.

        Raises:
            ValueError: if a side of the image is not divisible as stated.
        """
        return self.disentangle(image, timestep)[0]

    def disentangle(self, image: Tensor, timestep: Tensor | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return what :meth:`forward` returns, and the parts that the training loss looks at.

        Returns:
            ``(B, 2, H, W)``; common parts before, and distinct parts after their channel attention: a list of one
            ``(B, D / 2, H / f, W / f)`` for each stream, ``f = patch * 2 ** (levels - 1)``.
        """
        for size in image.shape[2:]:
            if size % self.factor != 0:
                raise ValueError(f"image: expected sides divisible by {self.factor}, got {image.shape}")
        if timestep is None:
            timestep = torch.zeros(image.shape[0], device=image.device)
        timestep = timestep.reshape(-1).expand(image.shape[0])
        embedding = timestep_embedding(timestep, self.embedding_width).to(self.time1.weight.dtype)
        embedding = self.time2(F.silu(self.time1(embedding)))
        first = self.noisy(F.pixel_unshuffle(image[:, 0:1], self.patch), embedding)
        second = self.degraded(F.pixel_unshuffle(image[:, 1:2], self.patch), embedding)
        third = self.reference(F.pixel_unshuffle(image[:, 2:3], self.patch), embedding)
        deepest = [first[-1], second[-1], third[-1]]
        common = [F.silu(self.common(h)) for h in deepest]
        distinct: list[Tensor] = []
        for index, attention in enumerate(self.distinct_attention):
            distinct.append(attention(F.silu(self.distinct(deepest[index]))))
        shared = self.common_attention((common[0] + common[1] + common[2]) / 3)
        hidden = F.silu(self.reduce(torch.cat([shared, distinct[0], distinct[1], distinct[2]], dim=1)))
        hidden = self.middle2(self.middle1(hidden, embedding), embedding)
        place = len(first)
        for stage in self.decoder:
            place -= 1
            skip = (first[place] + second[place] + third[place]) / 3
            hidden = stage(torch.cat([hidden, skip], dim=1), embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(hidden))), self.patch), common, distinct


def degraded_image(operator: LinearOperator, y: Tensor) -> Tensor:
    r"""Return the zero-filled image on the scale of the data: ``a A^H y`` with the ``a`` of the least data misfit.

    ``a = |A^H y|^2 / |A A^H y|^2`` for every sample: the step of steepest descent. ``A^H y`` alone is darker the fewer
    lines were measured.

    Args:
        operator: the operator ``A`` of the target.
        y: its data, ``(B, *range_shape)``.

    Returns:
        ``(B, 1, H, W)`` in the unit of the target.
    """
    image = operator.adjoint(y)
    tail = [1] * (image.ndim - 1)
    energy = image.abs().square().flatten(1).sum(1)
    projected = operator(image).abs().square().flatten(1).sum(1)
    return image * (energy / projected.clamp_min(1e-20)).reshape(-1, *tail)


class DisentangledSampling(PosteriorSampler):
    r"""Samples of the target given its zero-filled image and a clean reference, by reverse diffusion.

    As published, the measurement enters through the network alone (:func:`degraded_image`). ``consistency`` adds what
    the method does not have: every clean estimate ``x0^`` of a ``"ddim"`` or ``"multistep"`` chain is replaced by a few
    conjugate-gradient iterations on ``(A^H A + w) x = A^H y + w x0^``. The reference comes back as it is.

    Args:
        space: stack of the method: the target and its reference.
        diffusion: the diffusion of the target.
        steps: kept times of 1000; all of them are the full chain.
        chain: ``"ancestral"``, ``"ddim"`` or ``"multistep"``.
        variance: of an ancestral step: ``"learned"``, ``"smallest"`` or ``"largest"``.
        eta: noise of ``"ddim"``.
        samples: the result is the mean of so many samples (1: a sample).
        consistency: ``w`` of the data consistency, or None for none, as published.
        iterations: conjugate-gradient iterations of the data consistency.
        target: the modality that is reconstructed.
        reference: the clean modality.
        multiple: the sides of the grid must be divisible by it.
        autocast: ``"bfloat16"`` runs the network in mixed precision; None in float32.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: if a number or the chain is out of range.

    References:
        mao2023
    """

    def __init__(
        self,
        *,
        space: ImageSpace,
        diffusion: ConditionalDiffusion,
        steps: int = 20,
        chain: str = "ancestral",
        variance: str = "learned",
        eta: float = 0.0,
        samples: int = 1,
        consistency: float | None = None,
        iterations: int = 5,
        target: str = "flair",
        reference: str = "t1",
        multiple: int = 32,
        autocast: str | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space=space, source=source)
        for name in (target, reference):
            space[name]
        if chain not in CHAINS:
            raise ValueError(f"chain: expected one of {CHAINS}, got {chain!r}")
        diffusion.schedule.kept_steps(steps)
        if samples < 1:
            raise ValueError(f"samples: expected at least 1, got {samples}")
        if consistency is not None and (consistency <= 0 or chain == "ancestral"):
            raise ValueError(f"consistency: expected a positive weight and a chain other than 'ancestral', "
                             f"got {consistency} and {chain!r}")  # fmt: skip
        self.diffusion = diffusion
        self.steps, self.chain, self.variance, self.eta, self.samples = steps, chain, variance, eta, samples
        self.consistency, self.iterations = consistency, iterations
        self.target, self.reference = target, reference
        self.multiple = multiple
        self.autocast = None if autocast is None else getattr(torch, autocast)
        self.capability = Capability(
            operators=frozenset({"masked_fourier", "identity"}),
            likelihoods=frozenset({"gaussian"}),
            modalities=frozenset({target, reference}),
            requires={target: "masked_fourier", reference: "identity"},
            ndim=frozenset({2}),
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Any,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class.

        Raises:
            ValueError: if there is no network, or the grid does not suit it.
        """
        if network is None:
            raise ValueError("network: expected the bundle's network, got None")
        wrong = [n for n in measurement.space.shape if n % self.multiple]
        if wrong:
            raise ValueError(f"grid: expected sides divisible by {self.multiple}, got {measurement.space.shape}")
        y, reference = measurement.y[self.target], measurement.y[self.reference]
        with torch.no_grad():
            degraded = degraded_image(measurement.operator[self.target], y)
            condition = self.diffusion.to_range(torch.cat([degraded, reference], dim=1))
            correct = None
            if self.consistency is not None:
                correct = self._correction(measurement.operator[self.target], y)
            shape = (len(y), 1, *degraded.shape[2:])
            drawn = [
                self._draw(network, condition, SampleNoise(shape, generator, like=degraded), correct, callback)
                for _ in range(self.samples)
            ]
        result = self.diffusion.from_range(torch.stack(drawn).mean(0))
        parts = {self.target: result, self.reference: reference}
        return measurement.operator.assemble(parts, batch=len(y))

    def _correction(self, operator: LinearOperator, y: Tensor) -> Correction:
        weight, back = float(self.consistency or 0), operator.adjoint(y)

        def correct(estimate: Tensor, sigma: float) -> Tensor:
            image = self.diffusion.from_range(estimate)
            rhs = back + weight * image
            found = conjugate_gradient(operator.gram, rhs, x0=image, damping=weight, max_iterations=self.iterations)
            return self.diffusion.to_range(found.x)

        return correct

    def _draw(
        self, network: nn.Module, condition: Tensor, noise: SampleNoise, correct: Correction | None, callback: Any
    ) -> Tensor:
        def run(image: Tensor, timestep: Tensor) -> Tensor:
            with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                return network(image, timestep).float()

        return self.diffusion.sample(
            run,
            condition,
            noise,
            steps=self.steps,
            chain=self.chain,
            variance=self.variance,
            eta=self.eta,
            correct=correct,
            callback=callback,
        )
