"""The XML header of ISMRMRD, which fastMRI files carry too: encoded and reconstructed space, limits, sequence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .checks import reading, refusal, require

__all__ = ["Encoding", "read_encoding"]

_MAX_SIZE = 65535  # counters of the format have 16 bits


@dataclass(frozen=True)
class Encoding:
    """How k-space was encoded.

    Args:
        matrix: encoded matrix ``(x, y, z)``, readout first.
        fov_mm: encoded field of view in mm.
        recon_matrix: reconstructed matrix.
        recon_fov_mm: reconstructed field of view in mm.
        centres: index of the zero frequency along the two phase-encoding axes, None where the header has no limits.
        trajectory: ``"cartesian"`` or another.
        metadata: what else is worth keeping (field strength, sequence times in ms).
    """

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov_mm: tuple[float, float, float]
    centres: tuple[int | None, int | None]
    trajectory: str
    metadata: dict[str, Any]

    @property
    def readout_size(self) -> int:
        """Pixels of the readout without oversampling: those of the encoded pixel size within the reconstructed view."""
        pixels = round(self.matrix[0] * self.recon_fov_mm[0] / self.fov_mm[0])
        return pixels if 1 <= pixels <= self.matrix[0] else self.matrix[0]

    @property
    def pixel_mm(self) -> tuple[float, float, float]:
        """Encoded voxel size in mm."""
        sizes = tuple(f / n for f, n in zip(self.fov_mm, self.matrix, strict=True))
        return sizes[0], sizes[1], sizes[2]


def read_encoding(xml: bytes | str, path: str | os.PathLike[str]) -> Encoding:
    """Read the first encoding of an ISMRMRD header.

    Args:
        xml: the header.
        path: the file it comes from, for errors.

    Raises:
        ValueError: if it is no such header, or sizes are impossible.
    """
    schema = require("ismrmrd.xsd")
    with reading(path, "an ISMRMRD header"):
        header = schema.CreateFromDocument(xml)
        if not header.encoding:
            raise refusal("path", "an encoding in the ISMRMRD header", f"none in {str(path)!r}")
        encoding = header.encoding[0]
        encoded, recon = encoding.encodedSpace, encoding.reconSpace
        sizes = [(int(s.matrixSize.x), int(s.matrixSize.y), int(s.matrixSize.z)) for s in (encoded, recon)]
        views = [tuple(float(getattr(s.fieldOfView_mm, a)) for a in "xyz") for s in (encoded, recon)]
        if (
            min(map(min, sizes)) < 1
            or max(map(max, sizes)) > _MAX_SIZE
            or not all(0 < v < 1e4 for f in views for v in f)
        ):
            raise refusal(
                "path", "positive matrix sizes and fields of view", f"{sizes} and {views} mm in {str(path)!r}"
            )
        limits = encoding.encodingLimits
        steps = (limits.kspace_encoding_step_1, limits.kspace_encoding_step_2) if limits else (None, None)
        centres = tuple(None if s is None else int(s.center) for s in steps)
        trajectory = str(getattr(encoding.trajectory, "value", encoding.trajectory)).lower()
    return Encoding(sizes[0], views[0], sizes[1], views[1], (centres[0], centres[1]), trajectory, _facts(header))  # type: ignore[arg-type]


def _facts(header: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    system, sequence = header.acquisitionSystemInformation, header.sequenceParameters
    if system is not None and system.systemFieldStrength_T:
        facts["field_strength_t"] = float(system.systemFieldStrength_T)
    for name in ("TR", "TE", "TI", "flipAngle_deg"):
        values = list(getattr(sequence, name, None) or []) if sequence is not None else []
        if values:
            facts[name.lower() if name == "flipAngle_deg" else f"{name.lower()}_ms"] = [float(v) for v in values]
    return facts
