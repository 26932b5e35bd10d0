"""Train ``phantomnet64``, the encoder behind KID-phantomnet64 and FD-phantomnet64, on simulated slices.

    nice -n 15 python ci/train_feature_encoder.py --data DIR [--steps 900] [--out FILE]

DIR is a set of the train split made by ``multirecon.data.cached_slices.build``; without it the four training slices
of the embedded anatomy serve, enough to try the script and too few for weights that ship.

One image in, four questions about it: which modality, how high in the head, how much of every region, and how much blur
and noise was added. The last two make the features tell image quality and not only content. Only subjects of the train
split are seen, so scores on test subjects are not scores on images the encoder knows. Prints the SHA-256 to pin in
``multirecon/metrics/features.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from multirecon.data.cached_slices import CachedSlices
from multirecon.data.datasets import PhantomSlices
from multirecon.files import atomic_path
from multirecon.metrics.features import ENCODER_FILE, ENCODER_MODALITIES, FeatureEncoder

REGION_COUNT = 16
MAX_BLUR, MAX_NOISE = 2.0, 0.1  # pixels; the unit of the images


@dataclass(frozen=True)
class Slices:
    """Images ``(N, M, H, W)`` float16, heights ``(N,)`` in dm, region shares ``(N, REGION_COUNT)``."""

    images: Tensor
    heights: Tensor
    shares: Tensor
    ids: list[str]

    @property
    def digest(self) -> str:
        """Hash of the ids: which slices these are."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:16]


def shares_of(regions: Tensor) -> Tensor:
    """Return the share of every region index ``(N, REGION_COUNT)`` of maps ``(N, 1, H, W)``."""
    flat = regions.flatten(1).long()
    if int(flat.max()) >= REGION_COUNT:
        raise ValueError(f"regions: expected indices below {REGION_COUNT}, got {int(flat.max())}")
    counts = torch.zeros(len(flat), REGION_COUNT).scatter_add_(1, flat, torch.ones(flat.shape))
    return counts / flat.shape[1]


def cached(folder: Path, split: str, subjects_per_anatomy: int, limit: int) -> Slices:
    """Read slices of the first seeds, at most ``limit``, spread evenly."""
    data = CachedSlices(folder, ENCODER_MODALITIES, split=split)
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*/subject.json"))]
    height = {f"{r['anatomy']}/{r['seed']}/{z}": mm for r in records for z, mm in zip(r["z"], r["z_mm"], strict=True)}
    seeds = sorted({int(name.split("/")[1]) for name in data.ids})[:subjects_per_anatomy]
    found = [i for i, name in enumerate(data.ids) if int(name.split("/")[1]) in seeds]
    chosen = found[:: max(1, -(-len(found) // limit))]
    images, shares = [], []
    for start in range(0, len(chosen), 64):
        batch = data.batch(chosen[start : start + 64])
        images.append(batch["image"].half()), shares.append(shares_of(batch["regions"]))
    ids = [data.ids[i] for i in chosen]
    return Slices(torch.cat(images), torch.tensor([height[n] for n in ids]) / 100, torch.cat(shares), ids)


def embedded() -> Slices:
    """Return the training slices that ship inside the package; amyloid PET is not among them, FDG stands in."""
    names = tuple("pet_fdg" if m == "pet_amyloid" else m for m in ENCODER_MODALITIES)
    data = PhantomSlices("train", 1, modalities=names, slices=4, ct_unit="unit")
    items = [data[i] for i in range(len(data))]
    return Slices(
        torch.stack([item["image"] for item in items]).half(),
        torch.tensor([float(item["affine"][2, 3]) for item in items]) / 100,
        shares_of(torch.stack([item["regions"] for item in items])),
        [item["id"] for item in items],
    )


def degrade(images: Tensor, blur: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Blur ``(B, 1, H, W)`` by Gaussians of ``blur`` pixels and add white noise of level ``noise``, each ``(B,)``."""
    height, width = images.shape[-2:]
    squares = torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2
    transfer = torch.exp(-2 * (torch.pi * blur[:, None, None]) ** 2 * squares)[:, None]
    smooth = torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=(height, width))
    return smooth + noise[:, None, None, None] * torch.randn(images.shape, generator=generator)


class Questions(nn.Module):
    """The encoder with the heads it is trained by; the heads are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = FeatureEncoder()
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(64, len(ENCODER_MODALITIES) + 1 + REGION_COUNT + 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes = [len(ENCODER_MODALITIES), 1, REGION_COUNT, 2]
        modality, height, shares, quality = self.head(self.encoder(images)).split(sizes, dim=1)
        return modality, height[:, 0], shares, quality


@dataclass(frozen=True)
class Batch:
    """Images and the answers."""

    images: Tensor
    modality: Tensor
    height: Tensor
    shares: Tensor
    quality: Tensor


def draw(data: Slices, count: int, generator: torch.Generator) -> Batch:
    """Draw images of random slices and modalities, mirrored, rescaled, and blurred and noisy half of the time each."""
    index = torch.randint(len(data.images), (count,), generator=generator)
    modality = torch.randint(len(ENCODER_MODALITIES), (count,), generator=generator)
    images = data.images[index, modality][:, None].float()
    uniform = torch.rand(5, count, generator=generator)
    images = torch.where(uniform[0, :, None, None, None] < 0.5, images.flip(2), images)
    images = images * (0.9 + 0.2 * uniform[1, :, None, None, None])
    levels = [torch.where(u < 0.5, 0.0, 2 * u - 1) for u in uniform[2:4]]
    images = degrade(images, MAX_BLUR * levels[0], MAX_NOISE * levels[1], generator)
    return Batch(images, modality, data.heights[index], data.shares[index], torch.stack(levels, dim=1))


def losses(answers: tuple[Tensor, Tensor, Tensor, Tensor], batch: Batch) -> list[Tensor]:
    """Return the loss of every question; weights bring them to one size at the start."""
    modality, height, shares, quality = answers
    return [
        cross_entropy(modality, batch.modality),
        5 * mse_loss(height, batch.height),
        20 * mse_loss(shares, batch.shares),
        10 * mse_loss(quality, batch.quality),
    ]


def train(data: Slices, steps: int, batch_size: int, seed: int) -> Questions:
    """Return the trained encoder and heads; one thread and one seed give one result on one machine."""
    torch.manual_seed(seed)  # initial weights: torch offers no generator for them
    model, generator = Questions(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    started = time.perf_counter()
    for step in range(steps):
        batch = draw(data, batch_size, generator)
        terms = losses(model(batch.images), batch)
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            text = " ".join(f"{float(t.detach()):.3f}" for t in terms)
            print(f"step {step:5d}  {time.perf_counter() - started:6.1f} s  loss {text}", flush=True)
    return model.eval()


@torch.no_grad()
def report(model: Questions, data: Slices, seed: int) -> None:
    """Print how well the questions are answered on slices not trained on."""
    batch = draw(data, 512, torch.Generator().manual_seed(seed))
    modality, height, shares, quality = model(batch.images)
    accuracy = (modality.argmax(1) == batch.modality).float().mean()
    off = 100 * (height - batch.height).abs().mean()
    print(f"modality right {float(accuracy):.3f}; height within {float(off):.1f} mm")
    scale = torch.tensor([MAX_BLUR, MAX_NOISE])
    wrong = ((quality - batch.quality) * scale).abs().mean(0)
    print(f"blur within {float(wrong[0]):.3f} pixels, noise within {float(wrong[1]):.4f}, "
          f"region share within {float((shares - batch.shares).abs().mean()):.4f}")  # fmt: skip


def write(encoder: FeatureEncoder, path: Path) -> str:
    """Write the state dict in float16 and return the file's SHA-256."""
    state = {n: v.half() if v.is_floating_point() else v for n, v in encoder.state_dict().items()}
    state = {n: v.contiguous() for n, v in state.items() if not n.endswith("num_batches_tracked")}
    content = BytesIO()  # saved to a path, the archive would hold the name of the temporary file
    torch.save(state, content)
    with atomic_path(path) as draft:
        Path(draft).write_bytes(content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cached set of the train split")
    parser.add_argument("--validation", type=Path, help="cached set of the validation split, for the closing report")
    parser.add_argument("--seeds-per-anatomy", type=int, default=8)
    parser.add_argument("--slices", type=int, default=2000, help="slices kept in memory (0.23 MB each)")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ENCODER_FILE)
    arguments = parser.parse_args()
    if arguments.data is None and arguments.out == ENCODER_FILE:
        parser.error("--out: the packaged weights need --data; name another file to try the script")
    torch.set_num_threads(1)  # sums in one order
    data = (
        cached(arguments.data, "train", arguments.seeds_per_anatomy, arguments.slices) if arguments.data else embedded()
    )
    print(f"{len(data.ids)} slices (ids {data.digest}) in {len(ENCODER_MODALITIES)} modalities")
    model = train(data, arguments.steps, arguments.batch_size, arguments.seed)
    if arguments.validation:
        report(model, cached(arguments.validation, "validation", arguments.seeds_per_anatomy, 500), arguments.seed)
    digest = write(model.encoder, arguments.out)
    count = sum(p.numel() for p in model.encoder.parameters())
    print(f"{arguments.out.name}: {count} parameters, {arguments.out.stat().st_size} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
