"""The seam to MONAI's engines: batches become measurements, reconstructions become files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import list_data_collate
from monai.engines import PrepareBatch
from torch import Tensor
from torch.utils.data import Sampler

from .acquisition import Acquisition, fine_maps
from .files import atomic_path, drop_rows_after
from .measurement import Measurement
from .reconstruction.trust import trust_map
from .space import ImageSpace
from .units import attenuation_to_hu, is_hounsfield_outside

__all__ = [
    "PrepareMeasurement",
    "ProcessShare",
    "SampleLog",
    "SaveReconstructions",
    "collate",
    "named_images",
    "require",
]


def require(condition: Any, message: str) -> None:
    """Guard for the ``initialize`` section of a bundle config.

    Raises:
        ValueError: with the message, if the condition is false (an empty data list must not exit with 0).
    """
    if not condition:
        raise ValueError(message)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate data-set items: a Measurement is a batch of its own, everything else goes through MONAI's collation.

    Raises:
        ValueError: if several Measurements would share a batch.
    """
    if isinstance(items[0].get("image"), Measurement):
        if len(items) > 1:
            raise ValueError(f"batch_size: expected 1 for measurement files, got {len(items)}")
        return {key: (value if isinstance(value, Measurement) else [value]) for key, value in items[0].items()}
    return list_data_collate(list(items))


class PrepareMeasurement(PrepareBatch):
    r"""Turns a batch into ``(inputs, truth)`` for MONAI's engines; the inferer never sees the truth.

    A batch holds either ``"image"``: a Measurement read from a file (without truth), or ``"image"``: true stacks
    ``(B, C, *shape)`` with ``"fine"``: the same on the acquisition's finer grid (by channel, or a dictionary by name);
    these are measured by ``acquisition``, which also gets the fine maps beside the stack (``"attenuation_fine"`` as
    ``"attenuation"``). Without an acquisition the stack itself is handed on.

    Args:
        acquisition: simulated scans.
        modalities: channel names of ``"image"`` and ``"fine"``; the default is the acquisition's space.
        repeat: number of the noise realisation; with ``vary`` the number of batches prepared so far is added.
        vary: draw new noise for every batch (training); the evaluation keeps one realisation a sample.
    """

    def __init__(
        self,
        acquisition: Acquisition | None = None,
        *,
        modalities: Sequence[str] | None = None,
        repeat: int = 0,
        vary: bool = False,
    ) -> None:
        self.acquisition = acquisition
        self.modalities = tuple(modalities) if modalities is not None else None
        self.repeat = repeat
        self.vary = vary
        self._calls = 0

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Tensor | None]:
        """Return the measurement (or stack) on the device, and the truth ``(B, C, *shape)`` where it is known."""
        image = batchdata["image"]
        if isinstance(image, Measurement):
            return image.to(device or "cpu"), None
        if self.acquisition is None or (image.ndim > 2 + len(self.acquisition.space.shape)):
            return image.to(device=device, non_blocking=non_blocking), batchdata.get("label")
        space = self.acquisition.space
        names = self.modalities or space.names
        fine = batchdata.get("fine", image if self.acquisition.oversample == 1 else None)
        if fine is None:
            raise ValueError(
                f"batch: expected 'fine' images refined {self.acquisition.oversample}x, got {sorted(batchdata)}"
            )
        maps = dict(fine) if isinstance(fine, Mapping) else _by_name(fine, names, space)
        maps = {**fine_maps(batchdata), **maps}
        self._calls += 1
        measurement = self.acquisition(
            {n: _plain(t) for n, t in maps.items()},
            [str(s) for s in batchdata["id"]],
            repeat=self.repeat + (self._calls if self.vary else 0),
            affine=batchdata.get("affine"),
        )
        truth = _plain(image)[:, [c for n in space.names for c in _channels(n, names, space)]]
        return measurement.to(device or "cpu"), truth.to(device=device, non_blocking=non_blocking)


def _plain(t: Tensor) -> Tensor:
    return t.as_tensor() if hasattr(t, "as_tensor") else t


def _channels(name: str, names: Sequence[str], space: ImageSpace) -> range:
    start = sum(space[n].channels if n in space else 1 for n in names[: list(names).index(name)])
    return range(start, start + space[name].channels)


def _by_name(fine: Tensor, names: Sequence[str], space: ImageSpace) -> dict[str, Tensor]:
    widths = [space[n].channels if n in space else 1 for n in names]
    if sum(widths) != fine.shape[1]:
        raise ValueError(f"fine: expected {sum(widths)} channels for {list(names)}, got {fine.shape[1]}")
    return dict(zip(names, fine.split(widths, dim=1), strict=True))


class SaveReconstructions:
    """Ignite handler that writes every reconstruction as NIfTI (one file a modality) and, if asked, as PNG.

    Slices of one batch become separate files ``<id>_<modality>.nii.gz`` with the affine of their slice; a 3D result
    becomes a volume. CT leaves in HU (results of images that were handed in are in HU already). Files appear whole or
    not at all.

    Where measurements are handed in, ``<id>_trust.nii.gz`` says for every voxel which share of the result the data
    determine (:func:`multirecon.reconstruction.trust.trust_map`), one map a modality on the last axis.

    Args:
        output_dir: folder of the results, made where it is missing.
        space: modalities of the results where images, not measurements, are handed in.
        modalities: what to write; the default is every modality of the stack.
        png: also write an 8-bit picture of the middle slice, windowed to its 1st to 99.5th percentile.
        trust: also write trust maps; by default on 2D grids, where one takes well below a second (a 3D operator is
            called up to 62 times).
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        space: ImageSpace | None = None,
        modalities: Sequence[str] | None = None,
        png: bool = True,
        trust: bool | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.space = space
        self.modalities = tuple(modalities) if modalities is not None else None
        self.png = png
        self.trust = trust

    def attach(self, engine: Engine) -> None:
        """Attach to an engine: saves after every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the batch in ``engine.state.output``."""
        output, batch = engine.state.output, engine.state.batch
        inputs, pred = output["image"], output["pred"]
        space = inputs.space if isinstance(inputs, Measurement) else self.space
        if space is None:
            raise ValueError("space: expected the image space of the results, which images alone do not tell, got None")
        ids = sample_names(batch.get("id"), len(pred))
        for name, modality, image, affine in named_images(inputs, pred, ids, space=space, modalities=self.modalities):
            self._save(name, modality, image, affine)
        wanted = len(space.shape) == 2 if self.trust is None else self.trust
        if wanted and isinstance(inputs, Measurement):
            maps = trust_map(inputs, _plain(pred)).float().cpu()
            affines = _affines(inputs, pred)
            chosen = [space.names.index(m) for m in self.modalities or space.names]
            for index, name in enumerate(ids):
                self._write(self.output_dir / f"{safe_name(name)}_trust.nii.gz", maps[index, chosen], affines[index])

    def save_stack(self, stack: Tensor, prefix: str = "sample") -> None:
        """Write a stack ``(N, C, *shape)`` that answers no measurement, as ``<prefix>-<number>_<modality>``."""
        if self.space is None:
            raise ValueError("space: expected the image space of the stack, got None")
        affine = self.space.affine.reshape(-1, 4, 4)[0].double()
        for index, sample in enumerate(stack):
            for modality in self.modalities or self.space.names:
                image = sample[self.space.channels(modality)]
                if is_hounsfield_outside(modality, self.space[modality].unit):
                    image = attenuation_to_hu(image)
                self._save(f"{prefix}-{index}", modality, image, affine)

    def _save(self, sample: str, modality: str, image: Tensor, affine: Tensor) -> None:
        stem = f"{safe_name(sample)}_{modality}"
        nifti = self._write(self.output_dir / f"{stem}.nii.gz", image, affine)
        if self.png:
            with atomic_path(self.output_dir / f"{stem}.png") as draft:
                write_png(np.asarray(nib.as_closest_canonical(nifti).dataobj), draft)

    @staticmethod
    def _write(path: Path, image: Tensor, affine: Tensor) -> nib.Nifti1Image:
        """Write ``(channels, *shape)`` as NIfTI, channels last where there are several, and return it."""
        array = image.float().numpy()
        array = np.moveaxis(array if array.ndim == 4 else array[..., None], 0, -1)
        nifti = nib.Nifti1Image(array[..., 0] if array.shape[-1] == 1 else array, affine.numpy())
        with atomic_path(path) as draft:
            nib.save(nifti, draft)
        return nifti


class ProcessShare(Sampler[int]):
    """The samples of one of several processes, in whole batches: every sample is seen once, by one process.

    A batch holds what it would hold in a single process, so that results do not depend on the number of processes: a
    scan's noise may follow the place in the batch, a solver may stop for all of a batch. The count need not divide.

    Args:
        data_source: the data set.
        batch_size: of the loader that asks this sampler.
        rank: number of this process; by default ignite's.
        world_size: number of processes; by default ignite's.

    Raises:
        ValueError: if there are fewer batches than processes (one without any would never answer the others).

    Example:
        >>> [list(ProcessShare(range(7), 2, rank=rank, world_size=2)) for rank in (0, 1)]
        [[0, 1, 4, 5], [2, 3, 6]]
    """

    def __init__(
        self, data_source: Sized, batch_size: int, *, rank: int | None = None, world_size: int | None = None
    ) -> None:
        rank = idist.get_rank() if rank is None else rank
        count = idist.get_world_size() if world_size is None else world_size
        starts = range(0, len(data_source), batch_size)
        if len(starts) < count:
            raise ValueError(f"batch_size: expected a batch for each of {count} processes, got {len(starts)} "
                             f"of {batch_size} samples")  # fmt: skip
        mine = starts[rank::count]
        self.indices = [i for start in mine for i in range(start, min(start + batch_size, len(data_source)))]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class SampleLog:
    """Ignite handler that logs which samples every training step saw: the proof of what a network was trained on.

    One line a step is appended to a CSV file: the iteration and the samples' ids (``anatomy/seed/z``), space-separated.
    A resumed run appends; lines beyond the iteration it continues at are dropped first, as they are written again.

    Args:
        path: CSV file; its folder is made where it is missing.
        write: whether this process writes (one of several does).
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
        self.path = Path(path)
        self.write = write

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that restores its state: logs after every iteration."""
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _resume(self, engine: Engine) -> None:
        if self.write and engine.state.iteration:
            drop_rows_after(self.path, engine.state.iteration)

    def __call__(self, engine: Engine) -> None:
        """Append the ids of the batch in ``engine.state.batch``."""
        if not self.write:
            return
        ids = " ".join(str(i) for i in engine.state.batch["id"])
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("iteration,samples\n" if new else "") + f"{engine.state.iteration},{ids}\n")


def named_images(
    inputs: Any, pred: Tensor, ids: Sequence[str], *, space: ImageSpace, modalities: Sequence[str] | None = None
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yield the images of a result as they leave: ``(sample, modality, (channels, *shape), (4, 4) affine)``, CT in HU.

    Args:
        inputs: what was reconstructed: a Measurement, or images.
        pred: the result ``(B, C, *shape)``; of images it may hold one modality only, and says so.
        ids: names of the samples.
        space: the measurement's space, or the bundle's where images were handed in.
        modalities: which ones; all that the result holds by default.
    """
    measured = isinstance(inputs, Measurement)
    if not measured:
        space = space.select(getattr(pred, "meta", {}).get("modalities", space.names))
    affines = _affines(inputs, pred)
    for index, name in enumerate(ids):
        for modality in modalities or space.names:
            image = _plain(pred)[index, space.channels(modality)].detach().cpu()
            if measured and is_hounsfield_outside(modality, space[modality].unit):
                image = attenuation_to_hu(image)
            yield name, modality, image, affines[index]


def _affines(inputs: Any, pred: Any) -> Tensor:
    affines = inputs.space.affine if isinstance(inputs, Measurement) else torch.as_tensor(pred.affine)
    return affines.reshape(-1, 4, 4).double().expand(len(pred), 4, 4)


def sample_names(ids: Any, count: int) -> list[str]:
    """Return one name a sample: those given, numbered where one id covers several samples."""
    if ids is None:
        return [f"sample-{i:03d}" for i in range(count)]
    names = [str(i) for i in ids]
    if len(names) == count:
        return names
    return [f"{names[0]}-{i:03d}" for i in range(count)]


def safe_name(name: str) -> str:
    """Return the name with everything but letters, digits, dot, dash and underscore replaced by a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "sample"


def write_png(volume: np.ndarray, path: Path) -> None:
    """Write the middle slice of a RAS volume ``(X, Y, Z)`` as an 8-bit grey picture, anterior up, right on the left."""
    from matplotlib import image as mpl_image

    volume = volume[..., 0] if volume.ndim == 4 else volume
    middle = volume[..., volume.shape[-1] // 2]
    low, high = np.percentile(middle, [1.0, 99.5])
    mpl_image.imsave(path, middle.T[::-1, ::-1], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
