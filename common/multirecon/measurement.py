"""A measurement: data, operator, likelihood and image space, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from .blocks import Blocks
from .files import atomic_path
from .likelihoods import BlockLikelihood, Likelihood
from .operators import BlockDiagonal, LinearOperator
from .space import ImageSpace
from .storage import decode, encode, member, read_tensor, write_tensor

__all__ = ["FORMAT", "FORMAT_VERSION", "Measurement"]

FORMAT = "multirecon-measurement"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Measurement:
    r"""What a scanner hands over: ``y ~ p(y | A x)``, and nothing computed from the truth.

    Args:
        y: measured blocks, each ``(B, *range_shape)`` (of a spectral likelihood: energy bins in place of materials).
        operator: the block-diagonal model ``A`` on the stack of ``operator.space``.
        likelihood: one likelihood for every block.
        metadata: plain values for provenance (scanner, ``"simulated": true``); never used by a reconstructor.

    Raises:
        ValueError: if names or shapes disagree, a datum is not finite, or a count is negative.

    Example:
        >>> from multirecon.operators import Identity
        >>> from multirecon.likelihoods import Gaussian
        >>> space = ImageSpace(["t1", "ct"], (4, 4), (1.0, 1.0))
        >>> A = BlockDiagonal(space, {"t1": Identity((1, 4, 4))})
        >>> m = Measurement(Blocks({"t1": torch.ones(1, 1, 4, 4)}), A, BlockLikelihood({"t1": Gaussian(1.0)}))
        >>> m.available, m.clean, float(m.data_fidelity(torch.zeros(1, 2, 4, 4)))
        (('t1',), ('t1',), 8.0)
    """

    y: Blocks
    operator: BlockDiagonal
    likelihood: BlockLikelihood
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (tuple(self.y) == self.operator.names == self.likelihood.names):
            raise ValueError(f"blocks: expected the same names in data, operator and likelihood, got {list(self.y)}, "
                             f"{list(self.operator.names)}, {list(self.likelihood.names)}")  # fmt: skip
        for name, operator in self.operator.items():
            datum, expected = self.y[name], self.likelihood[name].data_shape(operator.range_shape)
            if tuple(datum.shape[1:]) != expected:
                raise ValueError(f"y[{name!r}]: expected shape (B, {', '.join(map(str, expected))}), "
                                 f"got {tuple(datum.shape)}")  # fmt: skip
            if not torch.isfinite(torch.view_as_real(datum) if datum.is_complex() else datum).all():
                raise ValueError(f"y[{name!r}]: expected finite data, got NaN or Inf")
            if self.likelihood[name].counting and datum.numel() and bool((datum < 0).any()):
                raise ValueError(f"y[{name!r}]: expected counts >= 0, got {float(datum.min()):g}")

    @property
    def space(self) -> ImageSpace:
        """The image space of the unknown stack."""
        return self.operator.space

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.y.batch_size

    @property
    def available(self) -> tuple[str, ...]:
        """Modalities about which something was measured."""
        return self.operator.names

    @property
    def clean(self) -> tuple[str, ...]:
        """Modalities available as images (identity blocks)."""
        return tuple(n for n in self.available if self.operator.is_clean(n))

    @property
    def given(self) -> tuple[str, ...]:
        """Modalities available as images without noise: their data are the answer."""
        return tuple(n for n in self.clean if getattr(self.likelihood[n], "is_exact", False))

    @property
    def missing(self) -> tuple[str, ...]:
        """Modalities of the stack about which nothing was measured."""
        return tuple(n for n in self.space.names if n not in self.available)

    @property
    def device(self) -> torch.device:
        """Device of the data."""
        return next(iter(self.y.values())).device if len(self.y) else torch.device("cpu")

    def data_fidelity(self, x: Tensor) -> Tensor:
        """Return ``-log p(y | A x)`` per sample, of shape ``(B,)``, for a stack ``(B, C, *shape)``."""
        return self.likelihood.nll(self.operator(x), self.y)

    def data_gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of :meth:`data_fidelity`, ``A^H grad``, shaped like the stack."""
        return self.operator.adjoint(self.likelihood.grad(self.operator(x), self.y))

    def back_projection(self) -> Tensor:
        """Return ``A^H y`` (zero-filled image, clean image, plain back-projection), zero where nothing was measured."""
        return self.operator.adjoint(self.y)

    def restrict(self, names: Sequence[str]) -> Measurement:
        """Return the measurement of the named blocks on the same stack."""
        return Measurement(self.y.select(names), self.operator.restrict(names), self.likelihood.restrict(list(names)),
                           self.metadata)  # fmt: skip

    def embed(self, space: ImageSpace) -> Measurement:
        """Return the same data seen in a larger stack of the same grid; what the stack adds counts as missing.

        Raises:
            ValueError: if the grids differ, or the larger stack lacks a measured modality or its channels.
        """
        lacking = [n for n in self.available if n not in space]
        if lacking:
            raise ValueError(f"space: expected modalities {list(self.available)}, got {list(space.names)}")
        return Measurement(
            self.y, self.operator.on(space.with_affine(self.space.affine)), self.likelihood, self.metadata
        )

    def samples(self, start: int, stop: int) -> Measurement:
        """Return samples ``start .. stop - 1`` as a measurement of their own."""
        operator = BlockDiagonal(self._space_of(start, stop),
                                 {n: op.samples(start, stop) for n, op in self.operator.items()})  # fmt: skip
        likelihood = BlockLikelihood({n: self.likelihood[n].samples(start, stop) for n in self.available})
        return Measurement(self.y.map(lambda t: t[start:stop]), operator, likelihood, self.metadata)

    def _space_of(self, start: int, stop: int) -> ImageSpace:
        affine = self.space.affine
        return self.space.with_affine(affine[start:stop]) if affine.ndim == 3 and len(affine) > 1 else self.space

    def to(self, device: torch.device | str) -> Measurement:
        """Return the measurement on another device (modules are moved in place)."""
        return Measurement(self.y.to(device), self.operator.to(device), self.likelihood.to(device), self.metadata)

    def fingerprint(self) -> str:
        """Return a SHA-256 hash of the data (names, shapes, dtypes, bytes): equal hashes mean bit-identical data."""
        digest = hashlib.sha256()
        for name, datum in self.y.items():
            array = datum.detach().cpu().contiguous()
            digest.update(f"{name}|{tuple(array.shape)}|{array.dtype}|".encode())
            digest.update(array.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the measurement to an HDF5 file, whole or not at all, and return its path."""
        # in memory first: HDF5 writes its tables when objects die, where a full disk cannot be reported in one place
        with h5py.File(os.fspath(path), "w", driver="core", backing_store=False) as file:
            self._write(file)
            file.flush()
            image = file.id.get_file_image()
        with atomic_path(path) as draft:
            draft.write_bytes(image)
        return Path(path)

    def _write(self, file: h5py.File) -> None:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["space"] = json.dumps(self.space.to_dict())
        file.attrs["blocks"] = json.dumps(list(self.available))
        file.attrs["metadata"] = json.dumps(self.metadata)
        for part in ("y", "operator", "likelihood"):
            file.create_group(part)
        for name in self.available:
            write_tensor(file["y"], name, self.y[name])
            encode(file["operator"].create_group(name), self.operator[name])
            encode(file["likelihood"].create_group(name), self.likelihood[name])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """Read a measurement file; nothing in it can execute.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        source = Path(path)
        if not source.is_file():
            raise ValueError(f"measurement file: expected an existing file, got {str(source)!r}")
        try:
            with h5py.File(source, "r") as file:
                return cls._read(file)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{source}: expected a readable measurement file, got {error}") from error

    @classmethod
    def _read(cls, file: h5py.File) -> Measurement:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"format: expected {FORMAT!r}, got {file.attrs.get('format')!r}")
        version = int(file.attrs.get("version", 0))
        if version != FORMAT_VERSION:
            raise ValueError(f"version: expected {FORMAT_VERSION}, got {version}"
                             + (" (written by a newer multirecon)" if version > FORMAT_VERSION else ""))  # fmt: skip
        space = ImageSpace(**json.loads(file.attrs["space"]))
        names = json.loads(file.attrs["blocks"])
        y, operators, likelihoods = {}, {}, {}
        for name in names:
            y[name] = read_tensor(member(file, "y"), name)
            operator = decode(member(member(file, "operator"), name))
            likelihood = decode(member(member(file, "likelihood"), name))
            if not isinstance(operator, LinearOperator) or not isinstance(likelihood, Likelihood):
                raise ValueError(f"block {name!r}: expected an operator and a likelihood, "
                                 f"got {type(operator).__name__} and {type(likelihood).__name__}")  # fmt: skip
            operators[name], likelihoods[name] = operator, likelihood
        metadata = json.loads(file.attrs["metadata"])
        return cls(Blocks(y), BlockDiagonal(space, operators), BlockLikelihood(likelihoods), metadata)
