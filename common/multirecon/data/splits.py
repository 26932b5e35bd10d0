"""Which anatomy belongs to training, validation and test: split by anatomy, never by slice, and enforced.

The embedded default is one anatomy, so there the *seeds* decide: every split owns its own range of seeds (its random
smooth deformations). Results on it say how a method does on new deformations of one head, not on new people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["EMBEDDED", "SEED_OFFSETS", "SPLITS", "check_samples", "sample_seed", "split_of"]

EMBEDDED = "mni152"

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("01", "02", "03", "06", "07", "08", "10", "11", "12"),
    "validation": ("04", "13"),
    "test": ("09", "15", "16"),
    "out_of_distribution": ("05", "14"),
}
SEEDS_PER_SPLIT = 1_000_000
SEED_OFFSETS = {name: i * SEEDS_PER_SPLIT for i, name in enumerate(SPLITS)}


def split_of(anatomy: str, seed: int = 0) -> str | None:
    """Return the split that owns a sample, or None for an anatomy that is not in the table.

    Args:
        anatomy: name of the anatomy.
        seed: seed the phantom is simulated with; it decides for the embedded anatomy only.
    """
    if anatomy == EMBEDDED:
        return list(SPLITS)[min(seed // SEEDS_PER_SPLIT, len(SPLITS) - 1)]
    return next((name for name, members in SPLITS.items() if anatomy in members), None)


def sample_seed(anatomy: str, seed: int, split: str) -> int:
    """Return the seed to simulate with: shifted into the range of ``split`` for the embedded anatomy, else unchanged.

    Raises:
        ValueError: if the split is unknown, or the seed outside ``[0, 1e6)``.
    """
    _check_split(split)
    if not 0 <= seed < SEEDS_PER_SPLIT:
        raise ValueError(f"seed: expected 0 <= seed < {SEEDS_PER_SPLIT}, got {seed}")
    return seed + SEED_OFFSETS[split] if anatomy == EMBEDDED else seed


def check_samples(split: str, samples: Iterable[tuple[str, int]]) -> None:
    """Refuse a set that holds samples of another split.

    Args:
        split: the split asked for.
        samples: pairs (anatomy, seed to simulate with).

    Raises:
        ValueError: if any sample belongs to another split, which it names.
    """
    _check_split(split)
    wrong = sorted({(a, s) for a, s in samples if split_of(a, s) not in (split, None)})
    if wrong:
        listed = ", ".join(f"{a} seed {s} ({split_of(a, s)})" for a, s in wrong[:5])
        raise ValueError(f"anatomies: expected samples of the split {split!r} only, got {listed}")


def split_anatomies(split: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return the anatomies of a split out of the available ones.

    Args:
        split: one of ``SPLITS``.
        available: names of the anatomies at hand.

    Raises:
        ValueError: if the split is unknown, or none of its anatomies is available.
    """
    _check_split(split)
    chosen = tuple(name for name in SPLITS[split] if name in available)
    if not chosen and EMBEDDED in available:
        return (EMBEDDED,)
    if not chosen:
        raise ValueError(
            f"split: none of the anatomies {SPLITS[split]} of {split!r} is available, got {list(available)}"
        )
    return chosen


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {list(SPLITS)}, got {split!r}")
