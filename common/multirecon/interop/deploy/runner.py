"""A bundle on one item after the other, exactly as ``python -m monai.bundle run`` runs it; no SDK needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...bundle import Bundle, load, load_network
from ...data.io import Volume
from ...engines import collate, named_images, sample_names
from ...measurement import Measurement
from ...units import is_hounsfield_outside
from .images import Reconstruction

__all__ = ["BundleRunner", "bundle_in"]


def bundle_in(path: str | os.PathLike[str]) -> Bundle:
    """Return the bundle of a model folder: the folder itself, or the only bundle in it.

    Args:
        path: what an application is given as its model.

    Raises:
        ValueError: if there is none, or several.
    """
    root = Path(path).absolute()
    if (root / "configs" / "metadata.json").is_file():
        return Bundle(root)
    found = sorted(p.parents[1] for p in root.glob("*/configs/metadata.json")) if root.is_dir() else []
    if len(found) != 1:
        raise ValueError(f"model: expected the folder of a bundle, or of one bundle, got {[p.name for p in found]} "
                         f"in {str(path)!r}")  # fmt: skip
    return Bundle(found[0])


class BundleRunner:
    """Reconstructs items by a bundle: preparation, method and post-processing are those of its ``inference.json``.

    An archive carries its own ``multirecon``, but this package is imported already: the two must be the same, and
    loading says so in one line where they are not.

    Args:
        bundle: folder of the bundle, see :func:`bundle_in`.
        variant: ``NAME`` of the overlay ``configs/inference_NAME.json``.
        options: values of the bundle's ``displayable_configs``, such as the seed.
        device: device, such as ``"cpu"``; by default the bundle's own choice.

    Raises:
        ValueError: if the bundle cannot be loaded, an option is unknown, or the archive holds another multirecon.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        variant: str | None = None,
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> None:
        self.bundle = bundle_in(bundle)
        overrides = {f"displayable_configs#{name}": value for name, value in (options or {}).items()}
        if device:
            overrides["device"] = f"$torch.device({device!r})"
        workflow = load(self.bundle, variant, **overrides)
        self.network = load_network(workflow)
        parse = workflow.parser.get_parsed_content
        self.device = torch.device(parse("device"))
        self.space = parse("space")
        self.inferer = parse("inferer")
        self.preprocessing, self.postprocessing = parse("preprocessing"), parse("postprocessing")
        self.prepare_batch = parse("prepare_batch")

    @torch.no_grad()
    def __call__(self, item: Mapping[str, Any]) -> list[Reconstruction]:
        """Return the images of the result.

        Args:
            item: ``"image"``: a Measurement, a stack ``(C, X, Y, Z)``, or paths; ``"id"``: its name; maybe
                ``"source"``: the DICOM series that it came from.
        """
        loaded = self.preprocessing({"image": item["image"], "id": item["id"]})
        batch = collate([loaded])
        inputs, _ = self.prepare_batch(batch, self.device, False)
        output = self.postprocessing({"image": inputs, "pred": self.inferer(inputs, self.network)})
        pred = output["pred"]
        space = inputs.space if isinstance(inputs, Measurement) else self.space
        names = sample_names(batch.get("id"), len(pred))
        results = []
        for sample, modality, image, affine in named_images(inputs, pred, names, space=space):
            unit = space[modality].unit
            unit = "HU" if is_hounsfield_outside(modality, unit) else unit
            volume = Volume(_spatial_first(image.float().numpy()), affine.numpy(), unit)
            results.append(Reconstruction(sample, modality, volume, item.get("source")))
        return results


def _spatial_first(image: np.ndarray) -> np.ndarray:
    """Return ``(channels, X, Y[, Z])`` as ``(X, Y, Z)``, or ``(X, Y, Z, channels)`` where there are several."""
    volume = np.moveaxis(image if image.ndim == 4 else image[..., None], 0, -1)
    return np.ascontiguousarray(volume[..., 0] if volume.shape[-1] == 1 else volume)
