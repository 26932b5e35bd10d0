"""The swap point: a Reconstructor turns a Measurement into an image stack and never sees the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from ..measurement import Measurement
from ..metrics import widened
from ..space import ImageSpace
from .image_source import ImageSource

__all__ = ["Capability", "ImageSource", "PosteriorSampler", "Reconstructor"]

Callback = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Capability:
    """What a reconstructor can be applied to, as facts that can be computed from a measurement.

    Args:
        operators: kinds of measurement operators it handles (``None``: any); ``identity`` blocks are clean images.
        likelihoods: kinds of likelihoods it handles (``None``: any).
        modalities: names its network knows (``None``: any); a measured modality outside them is refused.
        synthesises: whether it estimates modalities about which nothing was measured.
        ndim: numbers of spatial axes it handles.
        shape: the only grid it handles, or ``None``.
        requires: modalities that must be measured, each with the kind of its operator (``identity``: a clean image).
        channels: numbers of channels (energies, materials) of measured modalities whose network knows only so many.
    """

    operators: frozenset[str] | None = None
    likelihoods: frozenset[str] | None = None
    modalities: frozenset[str] | None = None
    synthesises: bool = False
    ndim: frozenset[int] = frozenset({2, 3})
    shape: tuple[int, ...] | None = None
    requires: Mapping[str, str] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)

    def refusals(self, measurement: Measurement, targets: Iterable[str] = ()) -> list[str]:
        """Return every reason, as a sentence, why the measurement (and its targets) is out of reach; empty if none.

        Args:
            measurement: the measurement offered.
            targets: modalities wanted in the result.
        """
        space, reasons = measurement.space, []
        if len(space.shape) not in self.ndim:
            reasons.append(f"grid: expected {sorted(self.ndim)} spatial axes, got {len(space.shape)}")
        if self.shape is not None and space.shape != self.shape:
            reasons.append(f"grid: expected shape {self.shape}, got {space.shape}")
        for name in measurement.available:
            kind, noise = measurement.operator[name].kind, measurement.likelihood[name].kind
            if self.operators is not None and kind not in self.operators:
                reasons.append(f"block {name!r}: expected an operator of {sorted(self.operators)}, got {kind!r}")
            if self.likelihoods is not None and noise not in self.likelihoods:
                reasons.append(f"block {name!r}: expected a likelihood of {sorted(self.likelihoods)}, got {noise!r}")
        if self.modalities is not None:
            unknown = sorted(set(measurement.available) - self.modalities)
            if unknown:
                reasons.append(f"modalities: expected some of {sorted(self.modalities)}, got {unknown}")
        for name, count in self.channels.items():
            if name in measurement.available and space[name].channels != count:
                reasons.append(f"modality {name!r}: expected {count} channels, got {space[name].channels}")
        for name, kind in self.requires.items():
            got = repr(measurement.operator[name].kind) if name in measurement.available else "no measurement"
            if got != repr(kind):
                reasons.append(f"block {name!r}: expected an operator of kind {kind!r}, got {got}")
        if not self.synthesises:
            missing = sorted(set(targets) - set(measurement.available))
            if missing:
                reasons.append(f"targets: expected measured modalities, got {missing} without a measurement")
        elif self.modalities is not None and (beyond := sorted(set(targets) - self.modalities)):
            reasons.append(f"targets: expected some of {sorted(self.modalities)}, got {beyond}")
        return reasons


class Reconstructor(Inferer):
    r"""``y -> x``: the protocol every method implements, a ``monai.inferers.Inferer``.

    A subclass writes :meth:`reconstruct` and states its :attr:`capability`. Calling the object checks the input, moves
    it to the network's device, lets gradients flow (MONAI's evaluator turns them off), embeds the measurement into the
    method's own stack where it has one, checks the result and returns the channels that were asked for.

    Args:
        space: the method's own stack (a prior's modalities); ``None``: the measurement's.
        source: how an image stack becomes a Measurement; needed only where images are handed in.
    """

    capability: Capability = Capability()

    def __init__(self, *, space: ImageSpace | None = None, source: ImageSource | None = None) -> None:
        super().__init__()
        self.space = space
        self.source = source

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)`` on ``measurement.space``.

        Args:
            measurement: the measurement, already in the method's stack and on the network's device.
            network: the bundle's network.
            generator: the only source of random numbers.
            callback: called as ``callback(iteration, estimate)``.
        """
        raise NotImplementedError

    def __call__(
        self,
        inputs: Measurement | Tensor,
        network: nn.Module | Callable[..., Any] | None = None,
        *args: Any,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
        **kwargs: Any,
    ) -> MetaTensor:
        """Reconstruct.

        Args:
            inputs: a Measurement, or an image stack ``(B, C, *shape)`` where a ``source`` is set.
            network: the bundle's network.
            *args: ignored; MONAI's callers may pass more.
            generator: random numbers; a generator seeded with 0 by default.
            callback: called as ``callback(iteration, estimate)``.
            **kwargs: ignored, as ``args``.

        Returns:
            A MetaTensor ``(B, C, *shape)`` on the measurement's own space, with its affine.

        Raises:
            ValueError: if the measurement is out of the method's reach, or the result is not finite.
        """
        measurement = self._measurement(inputs)
        reasons = self.capability.refusals(measurement)
        if reasons:
            raise ValueError(f"{type(self).__name__} cannot take this measurement: {'; '.join(reasons)}")
        own = measurement if self.space is None else measurement.embed(self.space)
        device = _device(network, measurement.device)
        training = torch.is_grad_enabled() and isinstance(network, nn.Module) and network.training
        with torch.enable_grad():
            result = self.reconstruct(
                own.to(device),
                network,  # type: ignore[arg-type]
                generator=generator or torch.Generator().manual_seed(0),
                callback=callback,
            )
        result = result if training else result.detach()
        if self.space is not None:
            result = _channels_of(result, own.space, measurement.space)
        if not isinstance(inputs, Measurement):
            result = ImageSource.restore(result, measurement)
        return finish(result, measurement.space)

    def _measurement(self, inputs: Measurement | Tensor) -> Measurement:
        if isinstance(inputs, Measurement):
            return inputs
        if self.source is None:
            raise ValueError(f"inputs: expected a Measurement, got {type(inputs).__name__}; "
                             "an image stack needs a 'source' in the inferer")  # fmt: skip
        return self.source(inputs)


class PosteriorSampler(Reconstructor):
    """A reconstructor that can draw samples of the posterior ``p(x | y)``."""

    def spread(self, measurement: Measurement) -> dict[str, float]:
        """Return, by modality, how much wider than drawn the samples of :meth:`draw` are made (1: as drawn).

        A factor found on validation data corrects intervals that are too narrow on the whole; it cannot correct their
        shape from place to place.
        """
        return {}

    def draw(
        self,
        inputs: Measurement | Tensor,
        network: nn.Module | None,
        num_samples: int,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return ``num_samples`` posterior samples ``(S, B, C, *shape)``, spread about their mean by :meth:`spread`.

        A widened sample goes no lower than 0, or than the lowest of the samples where that is below.
        """
        generator = generator or torch.Generator().manual_seed(0)
        samples = torch.stack([self(inputs, network, generator=generator).as_tensor() for _ in range(num_samples)])
        if isinstance(inputs, Measurement):
            for name, factor in self.spread(inputs).items():
                channels = inputs.space.channels(name)
                drawn = samples[:, :, channels]
                samples[:, :, channels] = torch.maximum(widened(drawn, factor), drawn.amin(0).clamp_max(0))
        return samples


def _channels_of(result: Tensor, own: ImageSpace, wanted: ImageSpace) -> Tensor:
    """Return the channels of another stack; zeros where it has a (missing) modality that the method's own has not."""
    shape = result.shape[2:]
    parts = [result[:, own.channels(m.name)] if m.name in own else result.new_zeros(len(result), m.channels, *shape)
             for m in wanted.modalities]  # fmt: skip
    return torch.cat(parts, dim=1)


def finish(result: Tensor, space: ImageSpace) -> MetaTensor:
    """Return the result as a MetaTensor with the space's affine, after checking its shape and values.

    Raises:
        ValueError: if the shape differs from the space's or a value is not finite.
    """
    space.check(result, "reconstruction")
    if not torch.isfinite(result).all():
        raise ValueError("reconstruction: expected finite values, got NaN or Inf")
    affine = space.affine if space.affine.ndim == 2 else space.affine[0]
    return MetaTensor(result, affine=affine)


def _device(network: Any, default: torch.device) -> torch.device:
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            return parameter.device
    return default
