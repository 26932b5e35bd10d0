"""Do a method's images look like true ones as a set: kernel and Fréchet distances from the features a run kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..metrics import FeatureDistance, frechet_distance, kid, kid_difference
from .hypotheses import Run
from .leaderboard import Board, Selection
from .records import OK, Record
from .side_files import load_features
from .statistics import Interval

__all__ = ["Population", "PopulationRow", "Populations"]

Rows = dict[tuple[str, int], Tensor]  # sample, seed of the method -> (slices, 64)


@dataclass(frozen=True)
class PopulationRow:
    """The distances of one method's images of one modality to the true ones.

    Args:
        method: ``bundle`` or ``bundle:variant``.
        target: modality.
        kernel: KID with an interval over anatomies.
        frechet: FD, or ``None`` with 64 images or fewer.
        anatomies: number of anatomies.
    """

    method: str
    target: str
    kernel: FeatureDistance
    frechet: FeatureDistance | None
    anatomies: int


@dataclass(frozen=True)
class Population:
    """Features of one run's images of one modality, slice by slice beside those of the truth.

    Args:
        features: ``(sample, seed) -> (slices, 64)``.
        truths: the same of the true images.
        anatomies: the same keys -> anatomy.
    """

    features: Rows
    truths: Rows
    anatomies: Mapping[tuple[str, int], str]

    def stacked(self, keys: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor, list[str]]:
        """Return features ``(N, 64)``, those of the truth, and the anatomy of every row."""
        groups = [self.anatomies[k] for k in keys for _ in self.features[k]]
        return torch.cat([self.features[k] for k in keys]), torch.cat([self.truths[k] for k in keys]), groups


class Populations:
    """The features that runs kept, read once each.

    Args:
        sources: output folders of the runs.
        selection: the records that count.
    """

    def __init__(self, sources: Sequence[Path], selection: Selection) -> None:
        self.sources = sources
        self._records: dict[Run, list[Record]] = {}
        for r in selection.records:
            if r.status == OK and r.repeat == 0:
                self._records.setdefault(Run(r.task, r.method), []).append(r)
        self._held: dict[Run, dict[str, Population]] = {}

    def of(self, run: Run) -> dict[str, Population]:
        """Return modality -> population of the results of the first noise realisation."""
        if run not in self._held:
            found: dict[str, Population] = {}
            for record in self._records.get(run, ()):
                truths = load_features(self.sources, record, truth=True)
                for target, features in load_features(self.sources, record).items():
                    if target not in truths or truths[target].shape != features.shape:
                        continue
                    held = found.setdefault(target, Population({}, {}, {}))
                    key = record.sample, record.seed
                    held.features[key], held.truths[key] = _tensor(features), _tensor(truths[target])
                    held.anatomies[key] = record.anatomy  # type: ignore[index]
            self._held[run] = found
        return self._held[run]

    def rows(self, board: Board) -> list[PopulationRow]:
        """Return the distances of every method of a task, by target and nearest first."""
        rows = []
        for row in board.rows:
            for target, population in self.of(Run(board.task, row.method)).items():
                features, truths, groups = population.stacked(sorted(population.features))
                if len(features) < 2:
                    continue
                several = len(set(groups)) > 1
                kernel = kid(features, truths, groups_a=groups, groups_b=groups, bootstrap=500 if several else 0)
                enough = len(features) > features.shape[1]
                frechet = frechet_distance(features, truths) if enough else None
                rows.append(PopulationRow(row.method, target, kernel, frechet, len(set(groups))))
        targets = list(dict.fromkeys(r.target for r in rows))
        return sorted(rows, key=lambda r: (targets.index(r.target), r.kernel.value))

    def difference(self, first: Run, second: Run, modality: str, metric: str) -> Interval | None:
        """Return ``KID(first) - KID(second)`` on the samples that both have, ``None`` without features.

        Raises:
            ValueError: on another metric than ``"kid"``.
        """
        if metric != "kid":
            raise ValueError(f"metric: expected 'kid', got {metric!r}")
        a, b = self.of(first).get(modality), self.of(second).get(modality)
        if a is None or b is None:
            return None
        keys = [k for k in sorted(a.features) if k in b.features and a.features[k].shape == b.features[k].shape]
        if not keys or sum(len(a.features[k]) for k in keys) < 2:
            return None
        (x, truths, groups), (y, others, _) = a.stacked(keys), b.stacked(keys)
        if not torch.equal(truths, others):  # other subjects under the same names
            return None
        found = kid_difference(x, y, truths, groups=groups)
        return Interval(found.value, found.low, found.high, len(set(groups)), len(groups))


def _tensor(features: np.ndarray) -> Tensor:
    return torch.from_numpy(features).double()
