"""Which part of the work is this process's: by ``--shard`` on a cluster, by torchrun within a machine, or by both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import ignite.distributed as idist
import torch

__all__ = ["Share", "share_of_this_process"]

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Every n-th piece of work, beginning with the i-th.

    Args:
        index: number of the share, from 1.
        count: number of shares.
        rank: number of this process among those that torchrun started.

    Example:
        >>> [Share(i, 2).of("abcde") for i in (1, 2)]
        [['a', 'c', 'e'], ['b', 'd']]
    """

    index: int = 1
    count: int = 1
    rank: int = 0

    def of(self, items: Sequence[T]) -> list[T]:
        """Return the items of this share: each item is in exactly one."""
        return list(items[self.index - 1 :: self.count])

    def total(self, *numbers: int) -> list[int]:
        """Return the sums over the processes that torchrun started; all of them have to ask."""
        if idist.get_world_size() == 1:
            return list(numbers)
        summed = idist.all_reduce(torch.tensor(numbers, dtype=torch.int64, device=idist.device()))
        assert isinstance(summed, torch.Tensor)
        return [int(n) for n in summed]


def _own_device(rank: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = visible.split(",")
    return names[rank % len(names)]


@contextmanager
def share_of_this_process(shard: tuple[int, int] = (1, 1)) -> Iterator[Share]:
    """Join the processes that torchrun started, if it did, and divide the shard ``(i, n)`` among them.

    They talk over gloo, about numbers only: each asks a worker for its reconstructions, which may use a GPU of its own.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if world == 1:
        yield Share(*shard)
        return
    idist.initialize("gloo")
    if torch.cuda.is_available():  # workers see one device each
        os.environ["CUDA_VISIBLE_DEVICES"] = _own_device(int(os.environ["LOCAL_RANK"]))
    try:
        rank = idist.get_rank()
        yield Share((shard[0] - 1) * world + rank + 1, shard[1] * world, rank)
    finally:
        idist.finalize()
