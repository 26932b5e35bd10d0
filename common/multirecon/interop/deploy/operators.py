"""Operators of the MONAI Deploy App SDK: loaders, the reconstruction by a bundle, writers.

They hand Python objects on: an *item* (``{"image": Measurement or stack, "id": name}``) from a loader to the
reconstruction, a list of :class:`~multirecon.interop.deploy.images.Reconstruction` from there to the writers. The SDK's
own inference operator casts images to 8 bits; here they stay float32 and keep their affine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .images import dicom_items, file_items, item_of_image, load_item, load_series, sdk_parts
from .runner import BundleRunner
from .writers import save_dicom, save_measurement, save_nifti

try:
    from monai.deploy.conditions import CountCondition
    from monai.deploy.core import ConditionType, Fragment, Image, Operator, OperatorSpec
except ImportError as error:
    raise ImportError(
        "monai.deploy: expected the MONAI Deploy App SDK (`ci/interop_env.sh deploy` makes its environment), "
        f"got none ({error})"
    ) from None

__all__ = [
    "DicomLoader",
    "DicomWriter",
    "MeasurementLoader",
    "MeasurementWriter",
    "NiftiLoader",
    "NiftiWriter",
    "ReconstructionOperator",
]

log = logging.getLogger(__name__)


class _Loader(Operator):
    """Emits one item a call, as often as there are items.

    Named output:
        item: ``{"image": ..., "id": ...}``.
    """

    def __init__(self, fragment: Fragment, *args: Any, path: str | os.PathLike[str], **kwargs: Any) -> None:
        self._waiting = list(self._find(path))
        super().__init__(fragment, CountCondition(fragment, len(self._waiting)), *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.output("item")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Load the next item and emit it."""
        item = self._load(self._waiting.pop(0))
        log.info("loaded %s", item["id"])
        op_output.emit(item, "item")

    def _find(self, path: str | os.PathLike[str]) -> Sequence[Any]:
        raise NotImplementedError

    def _load(self, found: Any) -> dict[str, Any]:
        return load_item(found)


class NiftiLoader(_Loader):
    """Loads the NIfTI images of a folder or a file; modalities are on the last axis, or files of a sub-folder.

    Args:
        fragment: the application.
        path: folder or file.

    Raises:
        ValueError: if there is no image.
    """

    def _find(self, path: str | os.PathLike[str]) -> Sequence[Any]:
        return file_items(path, images=True)


class MeasurementLoader(_Loader):
    """Loads the raw measurement files (HDF5) of a folder, or a single one.

    Args:
        fragment: the application.
        path: folder or file.

    Raises:
        ValueError: if there is no measurement.
    """

    def _find(self, path: str | os.PathLike[str]) -> Sequence[Any]:
        return file_items(path, images=False)


class DicomLoader(_Loader):
    """Loads DICOM series: the images of a folder, or one series a sub-folder; CT in HU.

    Args:
        fragment: the application.
        path: folder.

    Raises:
        ValueError: if there is no series, or a folder mixes several.
    """

    def _find(self, path: str | os.PathLike[str]) -> Sequence[Any]:
        return dicom_items(path)

    def _load(self, found: Any) -> dict[str, Any]:
        return load_series(found)


class ReconstructionOperator(Operator):
    """Runs a bundle on every item, as ``python -m monai.bundle run`` does.

    Named input:
        item: an item of the loaders here, or an SDK ``Image`` with an affine in its metadata.

    Named outputs:
        images: list of :class:`~multirecon.interop.deploy.images.Reconstruction`, for the writers here.
        image: the first of them as an SDK ``Image`` (float32, affine in the metadata); needs no receiver.

    Args:
        fragment: the application.
        bundle: folder of the bundle (an unpacked archive, or a folder of a checkout), or of one bundle.
        variant: inference variant.
        options: values of the bundle's ``displayable_configs``.
        device: device, such as ``"cpu"``.

    Raises:
        ValueError: if the bundle cannot be loaded, or was packed with another multirecon than the imported one.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        bundle: str | os.PathLike[str],
        variant: str | None = None,
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._runner = BundleRunner(bundle, variant=variant, options=options, device=device)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("item")
        spec.output("images").condition(ConditionType.NONE)
        spec.output("image").condition(ConditionType.NONE)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Reconstruct one item."""
        item = op_input.receive("item")
        if isinstance(item, Image):
            item = item_of_image(item)
        results = self._runner(item)
        op_output.emit(results, "images")
        op_output.emit(Image(*sdk_parts(results[0])), "image")


class _Writer(Operator):
    """Writes what it receives into a folder.

    Args:
        fragment: the application.
        path: folder, made where it is missing.
    """

    port = "images"

    def __init__(self, fragment: Fragment, *args: Any, path: str | os.PathLike[str], **kwargs: Any) -> None:
        self._path = path
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.input(self.port)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write what came."""
        log.info("wrote %s", self._save(op_input.receive(self.port)))

    def _save(self, received: Any) -> Any:
        raise NotImplementedError


class NiftiWriter(_Writer):
    """Writes images as ``<sample>_<modality>.nii.gz``: float32, with their affine.

    Named input:
        images: list of reconstructions.
    """

    def _save(self, received: Any) -> Any:
        return save_nifti(received, self._path)


class DicomWriter(_Writer):
    """Writes images as DICOM series of derived images, one folder an image.

    Named input:
        images: list of reconstructions.
    """

    def _save(self, received: Any) -> Any:
        return save_dicom(received, self._path)


class MeasurementWriter(_Writer):
    """Writes the raw measurement of an item as ``<id>.h5``, beside the images made from it.

    Named input:
        item: an item with a Measurement.
    """

    port = "item"

    def _save(self, received: Any) -> Any:
        return save_measurement(received, self._path)
