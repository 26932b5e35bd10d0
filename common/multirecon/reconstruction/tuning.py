"""Tuned settings of a method, one set for each kind of measurement block."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..measurement import Measurement
from ..operators.base import ComposedOperator, LinearOperator, ScaledOperator
from ..operators.projector_stack import SliceStack

__all__ = ["FORMAT", "GUIDE", "Tuning", "block_kind"]

FORMAT = 1
GUIDE = "+guide"
"""Suffix of the kind of a block that is measured together with a clean image of another modality."""

_KIND = re.compile(r"[a-z0-9_]+/[a-z0-9_]+(\+guide)?")


def block_kind(measurement: Measurement, name: str) -> str:
    """Return the kind of a block, ``"<operator kind>/<likelihood kind>"``, with ``"+guide"`` beside a clean modality.

    Of a product the factor that makes the data counts, of a scaled operator or a stack of slices the operator itself.

    Args:
        measurement: the measurement.
        name: name of the block.

    Raises:
        ValueError: if there is no such block.

    Example:
        >>> from multirecon.blocks import Blocks
        >>> from multirecon.likelihoods import BlockLikelihood, Gaussian
        >>> from multirecon.operators import BlockDiagonal, Diagonal
        >>> from multirecon.space import ImageSpace
        >>> import torch
        >>> A = Diagonal(torch.full((1, 2, 2), 2.0), shape=(1, 2, 2))
        >>> m = Measurement(Blocks({"t1": torch.ones(1, 1, 2, 2)}),
        ...                 BlockDiagonal(ImageSpace(["t1"], (2, 2), (1.0, 1.0)), {"t1": A}),
        ...                 BlockLikelihood({"t1": Gaussian(1.0)}))
        >>> block_kind(m, "t1")
        'diagonal/gaussian'
    """
    operator: LinearOperator = measurement.operator[name]
    while isinstance(operator, ComposedOperator | ScaledOperator | SliceStack):
        operator = operator.factor_list[0] if isinstance(operator, ComposedOperator) else operator.operator
    guided = any(other != name for other in measurement.clean)
    return f"{operator.kind}/{measurement.likelihood[name].kind}{GUIDE if guided else ''}"


class Tuning:
    r"""Dimensionless settings of a method (weights, iteration counts), looked up by the kind of measurement block.

    A setting is relative to the data it acts on (their curvature, their noise), so that it does not depend on dose
    or on the scale of an operator. What ``multirecon tune`` wrote into ``configs/tuning.json`` goes before the default;
    a kind with a guide that has no setting of its own takes that of the kind without. A variant may name the file of
    the bundle as its ``fallback``, for the kinds on which it was not tuned itself.

    Args:
        parameters: name of every setting -> its default.
        path: file of tuned settings; if it does not exist, the defaults hold.
        fallback: file of tuned settings that goes before the defaults for kinds that are not in ``path``; settings
            that are not in ``parameters`` are left out.

    Raises:
        ValueError: if the file is malformed, names a setting that is not in ``parameters``, or holds a value that is
            not finite.

    Example:
        >>> tuning = Tuning({"weight": 0.1})
        >>> with tuning.override({"pet/poisson": {"weight": 0.5}}):
        ...     tuning("weight", "pet/poisson+guide"), tuning("weight", "parallel_beam/transmission_poisson")
        (0.5, 0.1)
    """

    def __init__(
        self,
        parameters: Mapping[str, float],
        *,
        path: str | os.PathLike[str] | None = None,
        fallback: str | os.PathLike[str] | None = None,
    ) -> None:
        self.parameters = {name: _number(value, f"parameters.{name}") for name, value in parameters.items()}
        self.path = None if path is None else Path(path)
        self._settings = self._read(self.path) if self.path is not None and self.path.exists() else {}
        file = None if fallback is None else Path(fallback)
        self.fallback = self._read(file, partly=True) if file is not None and file.exists() else {}

    @property
    def settings(self) -> dict[str, dict[str, float]]:
        """The settings that go before the defaults: kind -> name -> value."""
        return {kind: dict(values) for kind, values in self._settings.items()}

    def __call__(self, name: str, kind: str) -> float:
        """Return the setting ``name`` for blocks of a kind (see :func:`block_kind`).

        Raises:
            ValueError: on an unknown name, or a text that is not a kind.
        """
        if name not in self.parameters:
            raise ValueError(f"name: expected one of {sorted(self.parameters)}, got {name!r}")
        _check_kind(kind, "kind")
        for settings in (self._settings, self.fallback):
            for key in (kind, kind.removesuffix(GUIDE)):
                if name in settings.get(key, {}):
                    return settings[key][name]
        return self.parameters[name]

    def of(self, measurement: Measurement, name: str) -> dict[str, float]:
        """Return every setting for the block ``name`` of a measurement."""
        kind = block_kind(measurement, name)
        return {setting: self(setting, kind) for setting in self.parameters}

    @contextmanager
    def override(self, settings: Mapping[str, Mapping[str, float]]) -> Iterator[Tuning]:
        """Put other settings in the place of the file's for the length of a ``with`` block.

        Args:
            settings: kind -> name -> value; what is not in it has the fallback's value or its default.

        Raises:
            ValueError: on an unknown name, a text that is not a kind, or a value that is not finite.
        """
        before, self._settings = self._settings, self._checked(settings, "settings")
        try:
            yield self
        finally:
            self._settings = before

    def _read(self, path: Path, *, partly: bool = False) -> dict[str, dict[str, float]]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected a JSON file of tuned settings, got {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            got = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path}: format: expected {FORMAT}, got {got!r}")
        return self._checked(content.get("settings"), f"{path}: settings", partly=partly)

    def _checked(self, settings: Any, where: str, *, partly: bool = False) -> dict[str, dict[str, float]]:
        if not isinstance(settings, Mapping):
            raise ValueError(f"{where}: expected kinds with settings, got {type(settings).__name__}")
        checked: dict[str, dict[str, float]] = {}
        for kind, values in settings.items():
            _check_kind(kind, where)
            if not isinstance(values, Mapping):
                raise ValueError(f"{where}.{kind}: expected names with numbers, got {type(values).__name__}")
            unknown = sorted(set(values) - set(self.parameters))
            if unknown and partly:
                values = {name: value for name, value in values.items() if name in self.parameters}
            elif unknown:
                raise ValueError(f"{where}.{kind}: expected some of {sorted(self.parameters)}, got {unknown}")
            checked[kind] = {name: _number(value, f"{where}.{kind}.{name}") for name, value in values.items()}
        return checked


def _check_kind(kind: Any, where: str) -> None:
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f"{where}: expected '<operator kind>/<likelihood kind>' or that with {GUIDE!r}, got {kind!r}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value!r}")
    return float(value)
