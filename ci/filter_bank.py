"""Draw the filters of a bundle: `python ci/filter_bank.py bundles/NAME` writes its docs/filters.png, bank by bank."""

import argparse
from pathlib import Path

import torch
from matplotlib import image as mpl_image

from multirecon.bundle import read_weights
from multirecon.files import atomic_path

ENLARGED = 5  # pixels of the picture a pixel of a filter


def mosaic(bank: torch.Tensor, columns: int) -> torch.Tensor:
    """Return filters ``(K, h, w)`` side by side, each scaled by its largest magnitude."""
    scaled = 0.5 + 0.5 * bank / bank.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)
    tiles = torch.nn.functional.pad(scaled, [1, 1, 1, 1], value=1.0)
    missing = -len(tiles) % columns
    tiles = torch.cat([tiles, torch.ones(missing, *tiles.shape[1:])])
    return tiles.unflatten(0, (-1, columns)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--columns", type=int, default=0, help="filters a row; by default 7 of several banks, 16 of one"
    )
    chosen = parser.parse_args()
    banks = read_weights(chosen.bundle / "models" / "model.pt")["filters"].float()
    # the same order in all banks: filters of one number share their codes' places
    banks = banks[:, banks.flatten(2).norm(dim=2).mean(0).argsort(descending=True, stable=True)]
    columns = chosen.columns or (16 if len(banks) == 1 else 7)
    gap = torch.ones(1, 6)
    rows = [mosaic(bank, columns) for bank in banks]
    parts = [part for row in rows for part in (row, gap.expand(len(row), -1))][:-1]
    picture = torch.cat(parts, dim=1).repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1)
    target = chosen.bundle / "docs" / "filters.png"
    with atomic_path(target) as draft:
        mpl_image.imsave(draft, picture.numpy(), cmap="gray", vmin=0.0, vmax=1.0)
    print(f"{target}: {tuple(banks.shape)} filters")


if __name__ == "__main__":
    main()
