"""The named feature encoder behind ``KID-phantomnet64`` and ``FD-phantomnet64``: a small CNN trained on phantom slices.

No ImageNet network is involved and nothing is downloaded, so these scores compare with each other and **never** with a
published FID or KID. ``ci/train_feature_encoder.py`` trains the weights that ship beside this file.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.datasets import to_unit
from ..space import Modality
from ..units import attenuation_to_hu

__all__ = ["ENCODER", "ENCODER_MODALITIES", "ENCODER_SHA256", "FeatureEncoder", "load_encoder", "network_scale"]

ENCODER = "phantomnet64"
ENCODER_SHA256 = "2bf90c9ab5c324b417cee6e766842995542f5be575153020910a316eb0d72ae1"
ENCODER_MODALITIES = ("t1", "t2", "flair", "t2star", "ct", "pet_fdg", "pet_amyloid")
ENCODER_FILE = Path(__file__).parent / f"{ENCODER}.pt"
SMALLEST = 32


class FeatureEncoder(nn.Module):
    r"""Map single-channel slices to 64 features, whatever the modality.

    Four convolutions (strides 2, 2, 2, 1; batch normalisation; SiLU), then the mean **and the standard deviation** of
    each of the 64 maps over the slice, a linear map to 64 numbers and a standardisation with the moments of the
    training images: :math:`f = (W [\mu, \sigma] - m) / s`. The standard deviation keeps texture, on which blur and
    noise act, from averaging out.

    Example:
        >>> FeatureEncoder().eval()(torch.zeros(2, 1, 128, 128)).shape
        torch.Size([2, 64])
    """

    features = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((1, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1)):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.projection = nn.Linear(2 * self.features, self.features, bias=False)
        self.standardise = nn.BatchNorm1d(self.features, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(B, 64)`` of ``images``.

        Args:
            images: ``(B, 1, H, W)`` on the scale of networks (:func:`network_scale`), H and W at least 32 pixels;
                trained at 1.875 mm.

        Raises:
            ValueError: on another shape.
        """
        if images.ndim != 4 or images.shape[1] != 1 or min(images.shape[2:]) < SMALLEST:
            raise ValueError(
                f"images: expected (B, 1, H, W) with H, W >= {SMALLEST}, one channel a call, got {tuple(images.shape)}"
            )
        maps = self.body(images).flatten(2)
        # the square root has no slope at zero: the small term keeps training finite on empty slices
        moments = torch.cat([maps.mean(2), (maps.var(2, correction=0) + 1e-6).sqrt()], dim=1)
        features: Tensor = self.standardise(self.projection(moments))
        return features

    @torch.no_grad()
    def encode(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Return the features ``(N, 64)`` of ``(N, 1, H, W)`` images, batch by batch and without gradients."""
        return torch.cat([self(part.float()) for part in images.split(batch_size)])


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Tensor]:
    content = ENCODER_FILE.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != ENCODER_SHA256:
        raise ValueError(f"{ENCODER_FILE.name}: expected SHA-256 {ENCODER_SHA256}, got {digest}")
    state: dict[str, Tensor] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    return state


def load_encoder(device: str | torch.device = "cpu") -> FeatureEncoder:
    """Return the shipped encoder ``phantomnet64`` in evaluation mode, its weights checked against their SHA-256.

    The file holds float16; arithmetic is float32.

    Args:
        device: where to put it.

    Raises:
        ValueError: if the file is not the one this version was released with.
    """
    encoder = FeatureEncoder()
    encoder.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in _shipped().items()})
    return encoder.eval().requires_grad_(False).to(device)


def network_scale(values: Tensor, modality: Modality) -> Tensor:
    """Bring one modality of a stack to the scale the encoder was trained on (about [0, 1]).

    MR stays as it is, CT goes to HU and the compressed scale, PET is divided by its unit of
    ``multirecon.data.datasets.PET_UNIT``.

    Args:
        values: values in the unit of the modality, any shape.
        modality: which modality they are, CT in 1/cm or HU.

    Raises:
        ValueError: on a modality the encoder has not seen, or a CT unit that is unknown.
    """
    if modality.name not in ENCODER_MODALITIES:
        raise ValueError(f"modality: expected one that {ENCODER} has seen {ENCODER_MODALITIES}, got {modality.name!r}")
    if modality.name == "ct" and modality.unit not in ("1/cm", "HU"):
        raise ValueError(f"modality: expected CT in '1/cm' or 'HU', got {modality.unit!r}")
    in_attenuation = modality.name == "ct" and modality.unit == "1/cm"
    return to_unit(modality.name, attenuation_to_hu(values) if in_attenuation else values)
