"""A task small enough for tests of the harness: noisy images of 16 x 16 voxels, from truths drawn by name."""

from collections.abc import Mapping
from typing import Any

import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity
from multirecon.space import ImageSpace


class FakeTask:
    description = "noisy images <b>of</b> 16 x 16 voxels"
    targets = ("t1",)
    metrics = ("psnr", "ssim", "nrmse")

    def __init__(self, name: str = "noise16", count: int = 3, repeats: int = 1, salt: str = "") -> None:
        self.name, self.count, self.repeats, self.salt = name, count, repeats, salt
        self.space = ImageSpace(["t1"], (16, 16), (2.0, 2.0))

    def samples(self, set_name: str = "small") -> list[dict[str, Any]]:
        if set_name != "small":
            raise ValueError(f"set: expected 'small', got {set_name!r}")
        return [self._item(i) for i in range(self.count)]

    def _item(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(1, 16, 16, generator=generator)
        region = torch.zeros(16, 16, dtype=torch.bool)
        region[4:12, 4:12] = True
        return {"id": f"s{index:02d}", "anatomy": f"a{index // 2}", "image": image, "regions": {"centre": region}}

    def measure(self, item: Mapping[str, Any], repeat: int = 0) -> tuple[Measurement, torch.Tensor]:
        seed = sum(map(ord, f"{self.name}{item['id']}{repeat}{self.salt}"))
        truth = item["image"][None]
        noise = 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
        operator = BlockDiagonal(self.space, {"t1": Identity((1, 16, 16))})
        likelihood = BlockLikelihood({"t1": Gaussian(0.1)})
        return Measurement(Blocks({"t1": truth + noise}), operator, likelihood, {"acquisition": self.name}), truth
