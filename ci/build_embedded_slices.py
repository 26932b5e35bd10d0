"""Simulate the slices of the embedded anatomy that ship inside the package (a ready-made sample of every split).

    python ci/build_embedded_slices.py

Run it again whenever PHANTOM_VERSION is raised; files of other versions are removed.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

os.environ["MULTIRECON_CACHE"] = tempfile.mkdtemp()

import multirecon.data.embedded
from multirecon.data.phantoms import PhantomConfig
from multirecon.data.splits import EMBEDDED, sample_seed
from multirecon.data.subject_slices import stored_subject, subject_key, subject_slices, write_subject
from multirecon.files import atomic_path

SLICES = {"test": 8, "train": 4, "validation": 4}
NAMES = ("t1", "t2", "flair", "t2star", "ct", "pet_fdg", "attenuation_511")
MASKS = ("brain", "ms", "infarct", "pet_hot", "pet_cold")


def repack(path: Path) -> None:
    """Compress the members of an archive more tightly (LZMA, a fifth less than what numpy writes)."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    with atomic_path(path) as draft, zipfile.ZipFile(draft, "w", compression=zipfile.ZIP_LZMA) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_LZMA)


def main() -> None:
    folder = Path(multirecon.data.embedded.__file__).parent
    for old in folder.glob("*.npz"):
        old.unlink()
    for split, count in SLICES.items():
        arguments = {"slices": count, "shape": (128, 128), "spacing_mm": 1.875}
        seed = sample_seed(EMBEDDED, 0, split)
        subject_slices(EMBEDDED, seed, PhantomConfig(), **arguments)
        key = subject_key(EMBEDDED, seed, PhantomConfig(), **arguments)
        arrays = stored_subject(key)
        wanted = {f"fine_{n}" for n in (*NAMES, *MASKS)} | {"regions", "affines", "z"}
        path = folder / f"{key}.npz"
        write_subject(path, {n: a for n, a in arrays.items() if n in wanted})
        repack(path)
        print(f"{split}: {path.name} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
