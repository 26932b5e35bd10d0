"""Filtered back-projection as a reconstructor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..likelihoods import TransmissionPoisson, log_transform
from ..measurement import Measurement
from ..operators import ParallelBeam
from .analytic import fbp
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning

__all__ = ["FilteredBackProjection"]


class FilteredBackProjection(Reconstructor):
    r"""Filtered back-projection of parallel-beam data, followed by the bundle's network (a Gaussian post-filter).

    Photon counts go through the logarithm first, ``b = log(I0 / (y - scatter))`` with the likelihood's blank scan; line
    integrals with Gaussian noise are taken as they are. Clean modalities are returned as they are.

    Args:
        window: apodisation of the ramp filter (``"ram-lak"``, ``"shepp-logan"``, ``"cosine"``, ``"hann"``).
        cutoff: fraction of the Nyquist frequency.
        non_negative: set negative attenuation to zero, which is physical but biases the noise upwards.
        tuning: ``"cutoff"`` by kind of block, in the place of ``cutoff``.
        source: how an image stack becomes a Measurement.

    References:
        kak1988
    """

    capability = Capability(
        operators=frozenset({"parallel_beam", "identity"}), likelihoods=frozenset({"gaussian", "transmission_poisson"})
    )

    def __init__(
        self,
        *,
        window: str = "ram-lak",
        cutoff: float = 1.0,
        non_negative: bool = False,
        tuning: Tuning | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(source=source)
        self.window = window
        self.cutoff = cutoff
        self.non_negative = non_negative
        self.tuning = tuning

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)`` in 1/cm; see the class."""
        parts: dict[str, Tensor] = {}
        for name, operator in measurement.operator.items():
            y, likelihood = measurement.y[name], measurement.likelihood[name]
            if not isinstance(operator, ParallelBeam):
                parts[name] = y
                continue
            if isinstance(likelihood, TransmissionPoisson):
                y, _ = log_transform(y, likelihood.I0, likelihood.scatter)
            cutoff = self.cutoff if self.tuning is None else self.tuning.of(measurement, name)["cutoff"]
            image = fbp(operator, y, window=self.window, cutoff=cutoff)
            image = image if network is None else network(image)
            parts[name] = image.clamp_min(0) if self.non_negative else image
        return measurement.operator.assemble(parts, batch=measurement.batch_size, like=torch.empty(0))
