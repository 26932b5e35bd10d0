"""A volume through a 2D method: resample, centre, run all slices in batches, return to the native grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import SpatialResample
from torch import Tensor, nn
from tqdm import tqdm

from ..measurement import Measurement
from ..space import ImageSpace
from .base import ImageSource, Reconstructor

__all__ = ["SliceWise"]


class SliceWise(Inferer):
    r"""Runs a 2D reconstructor over batches of slices.

    * A Measurement of many slices is run ``batch_size`` samples at a time.
    * An image stack of slices ``(B, C, H, W)`` goes straight to the reconstructor's ``source``.
    * A volume ``(1, C, X, Y, Z)`` of any orientation is resampled once to axial slices of the method's grid, centred on
      the head and keeping the native slice distance, reconstructed, and resampled back: shape, affine and
      orientation of the result are those of the input.

    Images are handed in and back in the units of files (CT in HU); measurements give images in the units used inside.

    Args:
        reconstructor: the 2D method.
        space: its image space; orientation of the slices is that of ``space.affine``.
        batch_size: slices a batch.
        progress: show a progress bar where there is more than one batch.
        seed: seed of the random numbers of a call that brings no generator (MONAI's engines, Label and Deploy).
        target: the one modality to return of images that were handed in (a viewer shows one image); empty: all of
            them. The result names its channels, ``result.meta["modalities"]``.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        *,
        space: ImageSpace,
        batch_size: int = 16,
        progress: bool = True,
        seed: int = 0,
        target: str = "",
    ) -> None:
        super().__init__()
        if len(space.shape) != 2:
            raise ValueError(f"space: expected a 2D grid, got shape {space.shape}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected >= 1, got {batch_size}")
        if target:
            space[target]  # raises on an unknown name
        self.reconstructor = reconstructor
        self.space = space
        self.batch_size = batch_size
        self.progress = progress
        self.seed = seed
        self.target = target

    @property
    def capability(self) -> Any:
        """The wrapped method's capability."""
        return self.reconstructor.capability

    def __call__(
        self,
        inputs: Measurement | Tensor,
        network: nn.Module | None = None,
        *args: Any,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> MetaTensor:
        """Reconstruct a measurement, a stack of slices, or a volume; see the class.

        Raises:
            ValueError: if the input is neither of the three, or the batch of a volume is not one.
        """
        generator = generator or torch.Generator().manual_seed(self.seed)
        if isinstance(inputs, Measurement):
            return self._measurement(inputs, network, generator, kwargs)
        if inputs.ndim == 4:
            if self.reconstructor.source is None:
                raise ValueError("inputs: expected a Measurement, got an image stack and no 'source' in the inferer")
            measurement = self.reconstructor.source(inputs)
            result = self._measurement(measurement, network, generator, kwargs)
            return self._leave(ImageSource.restore(result.as_tensor(), measurement), result.affine)
        if inputs.ndim != 5 or inputs.shape[0] != 1:
            raise ValueError(
                f"inputs: expected (B, C, H, W) slices or one volume (1, C, X, Y, Z), got {tuple(inputs.shape)}"
            )
        return self._volume(inputs, network, generator, kwargs)

    def _measurement(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        generator: torch.Generator,
        kwargs: dict[str, Any],
    ) -> MetaTensor:
        starts = range(0, measurement.batch_size, self.batch_size)
        if len(starts) == 1:
            return self.reconstructor(measurement, network, generator=generator, **kwargs)
        results = [
            self.reconstructor(
                measurement.samples(start, min(start + self.batch_size, measurement.batch_size)),
                network,
                generator=generator,
                **kwargs,
            )
            for start in tqdm(starts, desc="slices", unit="batch", disable=not self.progress or None)
        ]
        return MetaTensor(torch.cat([r.as_tensor() for r in results]), affine=results[0].affine)

    def _volume(
        self, volume: Tensor, network: nn.Module | None, generator: torch.Generator, kwargs: dict[str, Any]
    ) -> MetaTensor:
        source = self.reconstructor.source
        if source is None:
            raise ValueError("inputs: expected a Measurement, got a volume and no 'source' in the inferer")
        native = torch.as_tensor(getattr(volume, "affine", torch.eye(4)), dtype=torch.float64).reshape(-1, 4, 4)[0]
        # in the units used inside before anything is interpolated: what lies outside the volume is air, 0 and not 0 HU
        inside = source.enter(volume.as_tensor() if isinstance(volume, MetaTensor) else volume)
        image = MetaTensor(inside[0], affine=native)
        grid, size = self._slice_grid(image, native)
        to_slices = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)
        stack = to_slices(image, dst_affine=grid, spatial_size=size)
        slices = stack.as_tensor().permute(3, 0, 1, 2).contiguous()
        measurement = source.measure(slices, [f"slice-{k}" for k in range(len(slices))])
        result = self._measurement(measurement, network, generator, kwargs).as_tensor()
        back = MetaTensor(result.permute(1, 2, 3, 0).contiguous(), affine=grid)
        native_result = to_slices(back, dst_affine=native, spatial_size=tuple(volume.shape[2:])).as_tensor()[None]
        return self._leave(ImageSource.restore(native_result, measurement), native)

    def _leave(self, result: Tensor, affine: Tensor) -> MetaTensor:
        """Return what was asked for of a result ``(B, C, ...)``, with the names of its channels."""
        names = [self.target] if self.target else list(self.space.names)
        chosen = result[:, self.space.channel_index(names)] if self.target else result
        return MetaTensor(chosen, affine=affine, meta={"modalities": names})

    def _slice_grid(self, image: MetaTensor, native: Tensor) -> tuple[Tensor, Sequence[int]]:
        """Return affine and size ``(H, W, slices)`` of the axial slice grid centred on the foreground of the volume."""
        direction = self.space.affine if self.space.affine.ndim == 2 else self.space.affine[0]
        shape = torch.tensor(image.shape[1:], dtype=torch.float64)
        corners = torch.cartesian_prod(*[torch.tensor([0.0, float(n) - 1]) for n in shape]).to(torch.float64)
        world = corners @ native[:3, :3].T + native[:3, 3]
        heights = world[:, 2]
        step = float(native[:3, :3].norm(dim=0)[native[2, :3].abs().argmax()])
        count = max(1, round(float(heights.max() - heights.min()) / step) + 1)
        centre = self._centre(image, native)
        grid = torch.eye(4, dtype=torch.float64)
        grid[:3, :2] = direction[:3, :2]
        grid[:3, 2] = torch.tensor([0.0, 0.0, step], dtype=torch.float64)
        h, w = self.space.shape
        corner = centre - grid[:3, 0] * (h - 1) / 2 - grid[:3, 1] * (w - 1) / 2
        grid[:3, 3] = torch.stack([corner[0], corner[1], heights.min()])
        return grid, (h, w, count)

    @staticmethod
    def _centre(image: MetaTensor, native: Tensor) -> Tensor:
        """Return the centre in mm of the bounding box of everything above 10 % of the robust maximum."""
        magnitude = image.as_tensor().abs().amax(0)
        level = 0.1 * torch.quantile(magnitude.flatten()[:: max(1, magnitude.numel() // 100_000)].float(), 0.99)
        inside = torch.nonzero(magnitude > level).double()
        if not len(inside):
            inside = torch.zeros(1, 3, dtype=torch.float64)
        middle = (inside.min(0).values + inside.max(0).values) / 2
        return native[:3, :3] @ middle + native[:3, 3]
