"""Simulated acquisitions: how data are made from a truth, and the model a scanner would hand over with them.

The data come from a finer grid (``oversample``) and from true maps; the operator in the Measurement lives on the
method's own grid and uses what the scanner could know. One object yields both, because the model may depend on the data
(estimated coil maps, attenuation from the measured CT).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d

from ..blocks import Blocks
from ..likelihoods import BlockLikelihood, Gaussian, Likelihood
from ..measurement import Measurement
from ..operators import BlockDiagonal, Identity, LinearOperator
from ..space import ImageSpace

__all__ = [
    "Acquisition",
    "CleanImage",
    "InverseCrime",
    "Scan",
    "ScanContext",
    "ScanResult",
    "block_mean",
    "fine_maps",
    "keyed_generator",
]

_FINE = "_fine"


def keyed_generator(*key: object) -> torch.Generator:
    """Return a CPU generator seeded by a hash of the key, so that noise is tied to (task, sample, repeat, block)."""
    digest = hashlib.sha256("|".join(str(k) for k in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def block_mean(x: Tensor, factor: int) -> Tensor:
    """Return the mean over ``factor``-wide blocks of every spatial axis of ``(B, C, *spatial)``."""
    if factor == 1:
        return x
    pool = {4: avg_pool2d, 5: avg_pool3d}[x.ndim]
    return pool(x, factor)


def fine_maps(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the true fine maps beside the image stack: a batch's ``"attenuation_fine"`` serves as ``"attenuation"``.

    Args:
        batch: collated items of a data set; of these the tensors whose key ends in ``_fine``, ``(B, channels, *fine)``.
    """
    return {k.removesuffix(_FINE): t for k, t in batch.items() if k.endswith(_FINE) and isinstance(t, Tensor)}


@dataclass(frozen=True)
class ScanContext:
    """What one scan of one sample may look at while it simulates.

    Args:
        modality: name of the modality scanned.
        space: the method's image space.
        oversample: refinement of the grid that ``fine`` lives on.
        generator: random numbers of this (task, sample, repeat, block).
        fine: true fine maps ``(1, channels, *fine)`` by name, for physics that couples modalities: the stack, and
            ``"attenuation"`` (511 keV, 1/cm) or ``"materials"`` (g/cm^3) where the data set has them.
        measured: blocks already simulated for this sample, by name (attenuation from the measured CT).
    """

    modality: str
    space: ImageSpace
    oversample: int
    generator: torch.Generator
    fine: Mapping[str, Tensor]
    measured: Mapping[str, ScanResult] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanResult:
    """Data of one sample ``(1, *range_shape)`` with the model handed to the method."""

    y: Tensor
    operator: LinearOperator
    likelihood: Likelihood


class Scan:
    """How one modality is measured. Subclasses simulate from the fine truth and return the scanner's own model."""

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one sample.

        Args:
            fine: true image of the modality, ``(1, channels, *fine_shape)``, on the grid refined by
                ``context.oversample``.
            context: see :class:`ScanContext`.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """Return in a few words what is measured."""
        raise NotImplementedError

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know, the finer grid apart."""
        return ()


class CleanImage(Scan):
    """The modality is available as an image: ``A = I`` and no noise (or white noise of a stated level).

    Args:
        sigma: noise standard deviation in the unit of the image.
    """

    def __init__(self, sigma: float = 0.0) -> None:
        self.likelihood = Gaussian(sigma)
        self.sigma = sigma

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Return the block mean of the fine image, with noise where asked."""
        image = block_mean(fine, context.oversample)
        y = self.likelihood.sample(image, context.generator)
        return ScanResult(y, Identity(image.shape[1:]), Gaussian(self.sigma))

    def describe(self) -> str:
        """Return in a few words what is measured."""
        return f"image with noise of {self.sigma:g}" if self.sigma else "clean image"


class InverseCrime(Scan):
    """Data drawn from the very model that is handed over, on the method's own grid: the error that scans here avoid.

    It measures how much the avoided error matters, and tests models against their own noise; no task uses it.

    Args:
        scan: the scan whose model and noise are used.

    References:
        colton1998
    """

    def __init__(self, scan: Scan) -> None:
        self.scan = scan

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Return the scan's model with data of the block mean of the fine image."""
        result = self.scan.acquire(fine, context)
        image = block_mean(fine, context.oversample)
        with torch.no_grad():
            y = result.likelihood.sample(result.operator(image), context.generator)
        return ScanResult(y, result.operator, result.likelihood)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        return f"{self.scan.describe()} (inverse crime)"


class Acquisition:
    r"""Scans of several modalities of one stack; the modalities without a scan are missing.

    Args:
        space: the method's image space (grid and modalities of the task).
        scans: modality -> scan, simulated in this order; ``"*"`` stands for every modality of the space.
        key: name from which the noise is seeded, together with sample and repeat (the task's name).
        oversample: refinement of the grid that the data are simulated on; the truth handed in must live on it.

    Raises:
        ValueError: on an unknown modality or a truth of another shape.

    Example:
        >>> space = ImageSpace(["t1", "ct"], (4, 4), (1.0, 1.0))
        >>> acquisition = Acquisition(space, {"t1": CleanImage()}, key="demo")
        >>> acquisition({"t1": torch.ones(1, 1, 4, 4), "ct": torch.ones(1, 1, 4, 4)}, ["a"]).available
        ('t1',)
    """

    def __init__(
        self, space: ImageSpace, scans: Mapping[str, Scan], *, key: str = "acquisition", oversample: int = 1
    ) -> None:
        if "*" in scans:
            scans = {**dict.fromkeys(space.names, scans["*"]), **{n: s for n, s in scans.items() if n != "*"}}
        for name in scans:
            space[name]
        if oversample < 1:
            raise ValueError(f"oversample: expected >= 1, got {oversample}")
        self.space = space
        self.scans = dict(scans)
        self.key = key
        self.oversample = oversample

    @property
    def fine_shape(self) -> tuple[int, ...]:
        """Shape of the grid that the truth must live on."""
        return tuple(n * self.oversample for n in self.space.shape)

    def with_inverse_crime(self) -> Acquisition:
        """Return the acquisition whose data come from the models handed over; see :class:`InverseCrime`."""
        scans = {name: InverseCrime(scan) for name, scan in self.scans.items()}
        return Acquisition(self.space, scans, key=self.key, oversample=self.oversample)

    def __call__(
        self,
        fine: Mapping[str, Tensor],
        samples: Sequence[str],
        *,
        repeat: int = 0,
        affine: Tensor | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Measurement:
        """Simulate a batch.

        Args:
            fine: true images by name, ``(B, channels, *fine_shape)``; extra names serve the physics.
            samples: the ids of the samples, which seed their noise.
            repeat: number of the noise realisation.
            affine: voxel-to-RAS matrices ``(4, 4)`` or ``(B, 4, 4)`` of the method's grid in mm.
            metadata: provenance kept with the measurement.

        Returns:
            A Measurement of ``B`` samples on ``space``.
        """
        for name in self.scans:
            self._check(fine, name, len(samples))
        parts = [self._one({n: t[i : i + 1] for n, t in fine.items()}, s, repeat) for i, s in enumerate(samples)]
        space = self.space if affine is None else self.space.with_affine(affine)
        provenance = {"simulated": True, "acquisition": self.key, "repeat": repeat, **(metadata or {})}
        return collate([_measurement(p, space) for p in parts], space, provenance)

    def _check(self, fine: Mapping[str, Tensor], name: str, batch: int) -> None:
        if name not in fine:
            raise ValueError(f"image: expected the modality {name!r} to simulate its scan, got {sorted(fine)}")
        expected = (batch, self.space[name].channels, *self.fine_shape)
        if tuple(fine[name].shape) != expected:
            raise ValueError(f"image[{name!r}]: expected shape {expected} (grid refined {self.oversample}x), "
                             f"got {tuple(fine[name].shape)}")  # fmt: skip

    def _one(self, fine: Mapping[str, Tensor], sample: str, repeat: int) -> dict[str, ScanResult]:
        measured: dict[str, ScanResult] = {}
        for name, scan in self.scans.items():
            generator = keyed_generator(self.key, sample, repeat, name)
            context = ScanContext(name, self.space, self.oversample, generator, fine, dict(measured))
            measured[name] = scan.acquire(fine[name], context)
        return measured


def _measurement(parts: Mapping[str, ScanResult], space: ImageSpace) -> Measurement:
    return Measurement(
        Blocks({n: p.y for n, p in parts.items()}),
        BlockDiagonal(space, {n: p.operator for n, p in parts.items()}),
        BlockLikelihood({n: p.likelihood for n, p in parts.items()}),
    )


def collate(measurements: Sequence[Measurement], space: ImageSpace, metadata: Mapping[str, Any]) -> Measurement:
    """Join measurements of equal structure into one batch; operators are joined by stacking their per-sample tensors.

    Raises:
        ValueError: if the samples cannot share one batched operator.
    """
    first = measurements[0]
    y = Blocks({n: torch.cat([m.y[n] for m in measurements]) for n in first.available})
    operators = {n: first.operator[n].join([m.operator[n] for m in measurements]) for n in first.available}
    likelihoods = {n: first.likelihood[n].join([m.likelihood[n] for m in measurements]) for n in first.available}
    return Measurement(y, BlockDiagonal(space, operators), BlockLikelihood(likelihoods), dict(metadata))
