"""Peak memory of sparse coding with a patch dictionary, a synthesis dictionary and an analysis operator (claim A18).

`python ci/dictionary_memory.py` codes one stack of 2 channels with the same number of filters of the same size in
every form and prints the largest number of bytes that PyTorch held at once on top of image and filters (tensors, not
the scratch space inside single operations).
"""

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multirecon.priors.dictionaries import analyse, dct_bank, keep_jointly, sparse_code, synthesise


class TensorMemory(TorchDispatchMode):
    """Adds up the storages of the tensors that operations return while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._alive and storage.nbytes():
                    self._alive.add(key)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def patch_dictionary(image: Tensor, bank: Tensor, threshold: float) -> Tensor:
    """Code every overlapping patch, and average what the patches say of a pixel."""
    size = bank.shape[-1]
    flat = bank[0].flatten(1)
    patches = unfold(image.transpose(0, 1), size, padding=size // 2)
    codes = flat @ patches
    codes = torch.where(codes.abs() >= threshold, codes, torch.zeros_like(codes))
    return fold(flat.T @ codes, tuple(image.shape[2:]), size, padding=size // 2).transpose(0, 1)


def synthesis(image: Tensor, bank: Tensor, threshold: float) -> Tensor:
    """Two iterations of the coder: maps, duals and their spectra."""
    channels = image.shape[1]
    weights = {"single": torch.full((channels,), threshold), "group": torch.full((1,), threshold)}
    return synthesise(sparse_code(image, bank[:1], iterations=2, **weights).codes, bank[:1])


def analysis(image: Tensor, bank: Tensor, threshold: float, *, at_once: int) -> Tensor:
    """Responses, joint threshold and their synthesis, some filters at a time."""
    precision, result = torch.full((image.shape[1],), 2 / threshold**2), torch.zeros_like(image)
    for part in bank.split(at_once, dim=1):
        result += synthesise(keep_jointly(analyse(image, part), precision, torch.ones(1)), part)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256, help="pixels along a side")
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--size", type=int, default=7, help="side of a filter")
    chosen = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, chosen.channels, chosen.side, chosen.side, generator=generator)
    bank = dct_bank(chosen.size).float().expand(chosen.channels, -1, -1, -1).contiguous()
    forms: dict[str, Callable[[], Tensor]] = {
        "patch dictionary": lambda: patch_dictionary(image, bank, 0.05),
        "synthesis (CDL), ADMM": lambda: synthesis(image, bank, 0.05),
        "analysis (CAOL), all filters at once": lambda: analysis(image, bank, 0.05, at_once=bank.shape[1]),
        "analysis (CAOL), 7 filters at once": lambda: analysis(image, bank, 0.05, at_once=7),
        "analysis (CAOL), filter by filter": lambda: analysis(image, bank, 0.05, at_once=1),
    }
    unit = image.numel() * image.element_size()
    print(f"{chosen.channels} channels of {chosen.side} x {chosen.side}, {bank.shape[1]} filters of "
          f"{chosen.size} x {chosen.size}; the image has {unit / 2**20:.2f} MiB")  # fmt: skip
    print(f"{'form':40} {'peak, MiB':>10} {'images':>8}")
    for name, form in forms.items():
        with torch.no_grad(), TensorMemory() as memory:
            form()
        print(f"{name:40} {memory.peak / 2**20:10.1f} {memory.peak / unit:8.1f}")


if __name__ == "__main__":
    main()
