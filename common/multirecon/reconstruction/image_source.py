"""An image stack that is handed in becomes a measurement: clean images, or simulated scans of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from ..acquisition import Acquisition, CleanImage
from ..data.materials import attenuation_511
from ..measurement import Measurement
from ..space import ImageSpace
from ..units import attenuation_to_hu, hu_to_attenuation, is_hounsfield_outside

__all__ = ["ImageSource"]


class ImageSource:
    """Turns an image stack, as MONAI Label and Deploy hand it over, into a Measurement.

    The channels that hold images are named; an ``acquisition`` asks for a retrospective simulated scan of some of them.
    CT images come and go in HU, as everywhere at the border; all else is in the units of ``docs/notation.md``.

    Names may be given as one text, ``"t1, flair"``, as the options of a user interface are.

    Args:
        space: image space of the stack (modalities in channel order).
        available: modalities that are handed in; the default is all of them. A stack holds either every channel of
            the space, or these alone in this order.
        acquisition: scans that can be simulated; without it every available modality is a clean image.
        simulate: available modalities whose scan is simulated; the others are clean images. By default all that the
            acquisition has a scan for.
        percentile: scale every available modality so that this percentile of its positive values becomes 1 (MR images
            come in arbitrary units, priors expect about [0, 1]); ``None`` leaves the values alone. :meth:`restore`
            undoes it.
        levels: modality -> what the percentile becomes instead of 1; modalities that are not named keep their values.
        seed: number of the noise realisation of the simulated scans.
    """

    def __init__(
        self,
        space: ImageSpace,
        *,
        available: Sequence[str] | str | None = None,
        acquisition: Acquisition | None = None,
        simulate: Sequence[str] | str | None = None,
        percentile: float | None = None,
        levels: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.space = space
        self.available = space.names if available is None else _names(available, "available")
        if not self.available:
            raise ValueError(f"available: expected some of {list(space.names)}, got none")
        for name in self.available:
            space[name]
        scans = acquisition.scans if acquisition is not None else {}
        known = [name for name in self.available if name in scans]
        self.simulate = tuple(known) if simulate is None else _names(simulate, "simulate")
        wrong = [name for name in self.simulate if name not in known]
        if wrong:
            raise ValueError(f"simulate: expected available modalities that have a scan ({known}), got {wrong}")
        self.acquisition = acquisition
        if percentile is not None and not 0 < percentile <= 100:
            raise ValueError(f"percentile: expected a number in (0, 100], got {percentile}")
        self.percentile = percentile
        self.levels = dict.fromkeys(space.names, 1.0) if levels is None else dict(levels)
        for name, level in self.levels.items():
            space[name]
            if not level > 0:
                raise ValueError(f"levels[{name!r}]: expected > 0, got {level}")
        self.seed = seed

    def __call__(self, stack: Tensor, samples: Sequence[str] | None = None) -> Measurement:
        """Return the measurement of a stack ``(B, C, *shape)`` that was handed in; see :meth:`enter`, :meth:`measure`.

        Raises:
            ValueError: if the channel count or grid differs from the space, or an available channel is not finite.
        """
        return self.measure(self.enter(stack), samples)

    def given(self, channels: int) -> ImageSpace:
        """Return the space of a stack with so many channels: the whole one, or that of the available modalities.

        Raises:
            ValueError: if it is neither.
        """
        named = self.space.select(self.available)  # first: all modalities may be available, in another order
        for space in (named, self.space):
            if space.num_channels == channels:
                return space
        whole = "" if named.num_channels == self.space.num_channels else (
            f", or all {self.space.num_channels} channels {list(self.space.names)}"
        )  # fmt: skip
        raise ValueError(
            f"image: expected {named.num_channels} channels for the available {list(named.names)}{whole}, "
            f"got {channels}"
        )

    def enter(self, image: Tensor) -> Tensor:
        """Return an image ``(B, C, ...)`` in the units used inside: CT in 1/cm instead of HU."""
        given = self.given(image.shape[1])
        for modality in given.modalities:
            if is_hounsfield_outside(modality.name, modality.unit):
                image = image.clone()
                channels = given.channels(modality.name)
                image[:, channels] = hu_to_attenuation(image[:, channels])
        return image

    def measure(self, stack: Tensor, samples: Sequence[str] | None = None) -> Measurement:
        """Return the measurement of a stack ``(B, C, *shape)`` in the units used inside."""
        affine = getattr(stack, "affine", None)
        plain = stack.as_tensor() if isinstance(stack, MetaTensor) else stack
        given = self.given(plain.shape[1])
        given.check(plain)
        fine = {name: plain[:, given.channels(name)].float() for name in self.available}
        for name, image in fine.items():
            if not torch.isfinite(image).all():
                raise ValueError(
                    f"image: expected finite values in channel {name!r}, got NaN or Inf "
                    "(a missing modality is named in 'available', never coded as NaN)"
                )
        scales = {name: self._scale(name, image) for name, image in fine.items()}
        scaled = {name: image / scales[name] for name, image in fine.items()}
        if "ct" in scaled and is_hounsfield_outside("ct", self.space["ct"].unit):  # for simulated PET
            scaled["attenuation"] = attenuation_511(attenuation_to_hu(scaled["ct"].clamp_min(0.0)))
        usable = affine if affine is not None and affine.shape[-2:] == (4, 4) else None
        return self._scans()(
            scaled,
            samples or [f"image-{i}" for i in range(len(plain))],
            repeat=self.seed,
            affine=usable,
            metadata={"simulated": bool(self.simulate), "intensity_scale": scales},
        )

    def _scans(self) -> Acquisition:
        """Return the acquisition of the available modalities: simulated scans, and clean images of the others."""
        # in the order of the space, in which a scan may use what was measured before it
        names = [name for name in self.space.names if name in self.available]
        if self.acquisition is None:
            return Acquisition(self.space, {name: CleanImage() for name in names}, key="image")
        scans = {n: self.acquisition.scans[n] if n in self.simulate else CleanImage() for n in names}
        return Acquisition(self.space, scans, key=self.acquisition.key, oversample=self.acquisition.oversample)

    def _scale(self, name: str, image: Tensor) -> float:
        positive = image[image > 0]
        if self.percentile is None or name not in self.levels or not positive.numel():
            return 1.0
        # torch.quantile is limited to 2**24 values: a regular subsample is as good for a percentile.
        sample = positive[:: 1 + positive.numel() // 2**22]
        return float(torch.quantile(sample, self.percentile / 100)) / self.levels[name]

    @staticmethod
    def restore(result: Tensor, measurement: Measurement) -> Tensor:
        """Return the result ``(B, C, ...)`` in the units of the image that was handed in, CT in HU."""
        scales = measurement.metadata.get("intensity_scale", {})
        modalities = measurement.space.modalities
        factors = [scales.get(m.name, 1.0) for m in modalities for _ in range(m.channels)]
        result = result * torch.tensor(factors, device=result.device).reshape(1, -1, *[1] * (result.ndim - 2))
        for modality in modalities:
            if is_hounsfield_outside(modality.name, modality.unit):
                channels = measurement.space.channels(modality.name)
                result[:, channels] = attenuation_to_hu(result[:, channels])
        return result


def _names(value: Sequence[str] | str, argument: str) -> tuple[str, ...]:
    """Return names given as a list, or as one text with commas."""
    names = [n.strip() for n in value.split(",")] if isinstance(value, str) else [str(n) for n in value]
    names = [n for n in names if n]
    if len(set(names)) != len(names):
        raise ValueError(f"{argument}: expected no repeated name, got {names}")
    return tuple(names)
