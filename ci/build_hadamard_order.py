"""Order the Hadamard patterns of a single-pixel camera by the variance of their coefficients over training images.

    multirecon dataset build SET
    python ci/build_hadamard_order.py SET          # writes common/multirecon/acquisition/hadamard_t1_64.json

T1 slices of the training anatomies, averaged to 64 x 64 pixels; the first `KEPT` patterns are kept, in natural order
numbers `row * 64 + column`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from multirecon.acquisition.base import block_mean
from multirecon.data.splits import split_of
from multirecon.operators.hadamard import variance_order

SIZE, KEPT = 64, 1024
TARGET = Path(__file__).resolve().parents[1] / "common/multirecon/acquisition/hadamard_t1_64.json"


def training_images(folder: Path) -> tuple[torch.Tensor, list[str]]:
    """Return the T1 slices ``(n, 64, 64)`` of the training subjects ``anatomy_seed``, and the anatomies."""
    subjects = sorted(path.parent for path in folder.glob("train/*/t1.npy"))
    if not subjects:
        raise SystemExit(f"{folder}: expected train/*/t1.npy, got none")
    images, anatomies = [], []
    for subject in subjects:
        anatomy, _, seed = subject.name.partition("_")
        if split_of(anatomy, int(seed)) != "train":
            raise SystemExit(f"{subject}: expected a subject of the training anatomies")
        slices = torch.from_numpy(np.load(subject / "t1.npy", mmap_mode="r").astype(np.float32))
        images.append(block_mean(slices[:, None], slices.shape[-1] // SIZE)[:, 0])
        anatomies.append(anatomy)
    return torch.cat(images), list(dict.fromkeys(anatomies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="folder of `multirecon dataset build`")
    images, anatomies = training_images(parser.parse_args().dataset)
    rows = variance_order(images)[:KEPT].tolist()
    facts = {"shape": [SIZE, SIZE], "modality": "t1", "anatomies": anatomies, "slices": len(images)}
    TARGET.write_text(json.dumps({**facts, "rows": rows}) + "\n", encoding="utf-8")
    print(f"{len(images)} slices of {len(anatomies)} anatomies; the first patterns: {rows[:6]}; {TARGET.name}")


if __name__ == "__main__":
    main()
