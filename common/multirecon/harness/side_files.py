"""What a run keeps beside its records: features of every result, realisations and regions of shown samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import atomic_path
from ..metrics import ENCODER, ENCODER_MODALITIES, ENCODER_SHA256, FeatureEncoder, load_encoder, network_scale
from ..space import ImageSpace
from .questions import Answerable, TaskLike
from .records import Record
from .workspace import IMAGES, image_file, save_image

__all__ = ["FEATURES", "encode", "keep", "load_features", "load_regions", "save_features", "save_regions"]

FEATURES = "features"
SPACING_MM, TOLERANCE, SMALLEST = 1.875, 0.1, 32


def keep(
    output: Path, record: Record, stack: np.ndarray, task: TaskLike, ready: Answerable, *, shown: bool, repeats: int
) -> None:
    """Keep what the report needs beyond the record: features of the first noise realisation, images of the others.

    Args:
        output: folder of the run.
        record: the record of a good result.
        stack: the result ``(C, *shape)``.
        task: its task.
        ready: its question, with truth and regions.
        shown: whether the sample is one of those that the report shows; only of these are all realisations kept.
        repeats: noise realisations a sample.
    """
    if record.repeat == 0:
        save_features(output, record, stack, task.space, task.targets)
        save_features(output, record, ready.truth[0].numpy(), task.space, task.targets, truth=True)
        if shown and repeats > 1:
            save_regions(output, record, {**ready.regions, **ready.tissues})
    elif shown:
        save_image(image_file(output, record), stack)


def encode(stack: np.ndarray, space: ImageSpace, targets: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the features ``(slices, 64)`` of every target that ``phantomnet64`` was trained for.

    Targets of other modalities, of several channels, and grids that are not near the 1.875 mm it was trained at give
    none.

    Args:
        stack: ``(C, *shape)`` in stack units; a volume is encoded slice by slice along its last axis.
        space: its image space.
        targets: modalities.
    """
    near = all(abs(s - SPACING_MM) <= TOLERANCE * SPACING_MM for s in space.spacing_mm[:2])
    if not near or min(space.shape[:2]) < SMALLEST:
        return {}
    found = {}
    for name in targets:
        modality = space[name]
        if name not in ENCODER_MODALITIES or modality.channels != 1:
            continue
        image = torch.from_numpy(np.ascontiguousarray(stack[space.channels(name).start])).float()
        slices = image[None] if image.ndim == 2 else image.movedim(-1, 0)
        found[name] = _encoder().encode(network_scale(slices[:, None], modality)).numpy()
    return found


def save_features(
    output: Path, record: Record, stack: np.ndarray, space: ImageSpace, targets: Sequence[str], *, truth: bool = False
) -> None:
    """Keep the features of a result (or of the truth of its question), where there are any."""
    path = _features_file(output, record, truth=truth)
    if truth and path.exists():
        return
    features = encode(stack, space, targets)
    if features:
        _save_arrays(path, {**features, "encoder": np.array(f"{ENCODER}:{ENCODER_SHA256}")})


def load_features(outputs: Sequence[Path], record: Record, *, truth: bool = False) -> dict[str, np.ndarray]:
    """Return target -> features ``(slices, 64)``; nothing where none were kept or another encoder made them."""
    arrays = _first(_features_file(output, record, truth=truth) for output in outputs)
    if str(arrays.pop("encoder", "")) != f"{ENCODER}:{ENCODER_SHA256}":
        return {}
    return {n: a for n, a in arrays.items() if a.ndim == 2 and a.shape[1] == FeatureEncoder.features}


def save_regions(output: Path, record: Record, regions: Mapping[str, Tensor]) -> None:
    """Keep the masks of a question beside its truth."""
    path = image_file(output, record, truth=True).with_suffix(".regions.npz")
    if regions and not path.exists():
        _save_arrays(path, {name: mask.numpy() for name, mask in regions.items()})


def load_regions(outputs: Sequence[Path], record: Record) -> dict[str, Tensor]:
    """Return the masks that :func:`save_regions` kept."""
    arrays = _first(image_file(o, record, truth=True).with_suffix(".regions.npz") for o in outputs)
    return {name: torch.from_numpy(mask) for name, mask in arrays.items() if mask.dtype == bool}


def _features_file(output: Path, record: Record, *, truth: bool) -> Path:
    path = image_file(output, record, truth=truth)
    return output / FEATURES / path.relative_to(output / IMAGES).with_suffix(".npz")


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _first(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    """Return the arrays of the first file that can be read."""
    for path in paths:
        try:
            with np.load(os.fspath(path), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, KeyError, EOFError):
            continue
        except Exception as error:  # a damaged archive: zipfile and zlib raise errors of their own
            if type(error).__module__.partition(".")[0] not in ("zipfile", "zlib"):
                raise
    return {}


@lru_cache(maxsize=1)
def _encoder() -> FeatureEncoder:
    return load_encoder()
