"""PET/CT tasks on a grid of PET counts and CT photons, as JSON files: `python ci/petct_grid.py FOLDER`.

They are `petct_lowdose` with other doses, 2 slices a test anatomy in the set `small`, and not part of the catalogue: a
joint method is asked by `multirecon evaluate OUT --tasks FOLDER/NAME.json,... --bundles NAME,NAME:separate` what the
other modality is worth to it at every dose. All tasks share the noise key, so that the PET data of a count are the same
at every CT dose up to the attenuation that is taken from the CT. `--split validation` makes sets for tuning.
"""

import argparse
import json
from pathlib import Path

from build_tasks import SCATTERED, ct, pet, task

COUNTS = (2.5, 5.0, 10.0, 50.0)
PHOTONS = (1e3, 1e4, 1e5)


def grid(split: str, slices: int) -> dict[str, dict]:
    """Return task name -> content."""
    tasks = {}
    for counts in COUNTS:
        for photons in PHOTONS:
            name = f"petct_{counts:g}_{photons:.0e}".replace(".", "p").replace("e+0", "e")
            scans = {"ct": ct(120, photons, **SCATTERED), "pet_fdg": pet(counts, "ct")}
            words = f"FDG PET from {counts:g} trues a pixel and CT from 120 views of {photons:g} photons"
            content = task(name, words, "pet_ct", scans, key="petct_grid")
            content["dataset"] |= {"split": split, "slices": slices}
            content["sets"] = {"small": {}}
            tasks[name] = content
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--slices", type=int, default=2, help="slices a subject")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, content in grid(arguments.split, arguments.slices).items():
        (arguments.folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{len(COUNTS) * len(PHOTONS)} tasks in {arguments.folder}")


if __name__ == "__main__":
    main()
