"""Data sets and anatomies on the command line; see :mod:`multirecon.__main__`. Imports wait for the call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["anatomies_download", "anatomies_list", "dataset_build", "dataset_info"]


def dataset_build(
    output: Path,
    *,
    split: str,
    seeds: int = 1,
    modalities: tuple[str, ...] = (),
    anatomies: tuple[str, ...] = (),
    stride: int = 2,
    size: int = 128,
    spacing_mm: float = 1.875,
    config: str = "",
    device: str = "cpu",
    progress: bool = True,
) -> None:
    """Simulate subjects once into a folder of memory-mapped slices; run it again to go on, or with more seeds.

    Args:
        output: folder of the set; it holds one split and one choice of settings only.
        split: train, validation, test or out_of_distribution.
        seeds: subjects simulated from each anatomy.
        modalities: what to store, separated by commas; by default everything.
        anatomies: names, separated by commas; by default those of the split that are at hand.
        stride: take every n-th useful slice.
        size: pixels along either side of a slice.
        spacing_mm: pixel size in mm.
        config: JSON file with fields of PhantomConfig that differ from the defaults.
        device: where to simulate, such as cpu or cuda:0.
        progress: show the progress bar (--noprogress: do not).
    """
    for name, value in (("seeds", seeds), ("size", size), ("spacing_mm", spacing_mm)):
        if not value > 0:
            raise ValueError(f"{name}: expected > 0, got {value}")
    knobs = _knobs(config)

    from .anatomies import EMBEDDED, list_anatomies
    from .cached_slices import STORED, build

    at_hand = {*list_anatomies(), EMBEDDED}
    unknown = [a for a in anatomies if a not in at_hand]
    if unknown:
        raise ValueError(f"anatomies: expected some of {sorted(at_hand)}, got {', '.join(unknown)}")
    facts = build(
        output,
        split,
        seeds,
        modalities=modalities or STORED,
        stride=stride,
        shape=(size, size),
        spacing_mm=spacing_mm,
        anatomies=anatomies or None,
        config=knobs,
        device=device,
        progress=progress,
    )
    print(describe(output, facts))


def dataset_info(folder: Path, *, verify: bool = False) -> None:
    """Say what is in a folder that `multirecon dataset build` made.

    Args:
        folder: folder of the set.
        verify: also compare every file with its checksum; the exit code is 1 if one differs.
    """
    from .cached_slices import info

    print(describe(folder, info(folder, verify=verify)))
    if verify:
        print("checksums    every file as it was written")


def anatomies_download(destination: Path, *, names: tuple[str, ...] = (), progress: bool = True) -> None:
    """Fetch the public head label maps (16 persons, 27 MB); run it again to go on where it stopped.

    Args:
        destination: folder of the label maps, for the setting MULTIRECON_ANATOMIES.
        names: some of 01 to 16, separated by commas; by default all.
        progress: show the progress bar (--noprogress: do not).
    """
    from .download import CHECKSUMS, download

    unknown = [name for name in names if name not in CHECKSUMS]
    if unknown:
        raise ValueError(f"names: expected some of {', '.join(CHECKSUMS)}, got {', '.join(unknown)}")
    wanted = {name: CHECKSUMS[name] for name in names or CHECKSUMS}
    paths = download(destination, checksums=wanted, progress=progress)
    print(f"{len(paths)} label maps with the right checksums; use them with\n"
          f"export MULTIRECON_ANATOMIES={destination.resolve()}")  # fmt: skip


def anatomies_list() -> None:
    """List the anatomies at hand and the split that each belongs to."""
    from .anatomies import EMBEDDED, SETTING, anatomies_folder, list_anatomies
    from .splits import SPLITS, split_of

    folder = anatomies_folder()
    present = list_anatomies()
    for name in sorted({*present, EMBEDDED}):
        if name == EMBEDDED:
            use = "every split, by seed" if name in present else "only where it is named"
            print(f"{name:10}  {use} (embedded)")
        else:
            print(f"{name:10}  {split_of(name) or 'no split: only where it is named'}")
    if folder is None:
        print(f"{SETTING} is not set: `multirecon anatomies download FOLDER` fetches 16 persons")
        return
    print(f"{SETTING}: {folder}")
    alone = [split for split, members in SPLITS.items() if not set(members) & set(present)]
    if alone:
        print(f"no anatomy at hand of: {', '.join(alone)}")


def describe(folder: Path, facts: dict[str, Any]) -> str:
    """Return what a set holds, one line a fact.

    Args:
        folder: folder of the set.
        facts: what :func:`multirecon.data.cached_slices.info` returns.
    """
    height, width = facts["shape"]
    each = ", ".join(f"{name} {count}" for name, count in facts["anatomies"].items())
    rows = {
        "folder": folder,
        "split": facts["split"],
        "subjects": facts["subjects"],
        "slices": f"{facts['slices']} ({each or 'none'})",
        "grid": f"{height} x {width} pixels of {facts['spacing_mm']:g} mm, every {facts['stride']}. slice",
        "modalities": ", ".join(facts["modalities"]),
        "size": f"{facts['bytes'] / 1e6:.1f} MB",
        "clipped": f"{facts['clipped']:.2%} of the pixels of an MR image at most",
    }
    return "\n".join(f"{name:11}  {value}" for name, value in rows.items())


def _knobs(config: str) -> dict[str, Any]:
    """Return the phantom knobs of a JSON file."""
    if not config:
        return {}
    try:
        knobs = json.loads(Path(config).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"config: expected a JSON file, got {error} in {config}") from None
    if not isinstance(knobs, dict):
        raise ValueError(f"config: expected a JSON object with fields of PhantomConfig, got {type(knobs).__name__}")
    return knobs
