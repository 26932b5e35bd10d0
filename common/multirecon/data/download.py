"""Download of the public head label maps, resumable and checked file by file."""

from __future__ import annotations

import os
from pathlib import Path

from tqdm import tqdm

from ..transfer import fetch, file_sha256

__all__ = ["BASE_URL", "CHECKSUMS", "download"]

# SynthSeg's training label maps (Apache-2.0), pinned to one commit; Billot et al., Medical Image Analysis 2023
BASE_URL = "https://raw.githubusercontent.com/BBillot/SynthSeg/66342c1f05e520f3729a6d7ca1042eb7f01b6266/data/training_label_maps"
CHECKSUMS = {
    "01": "edbf1229a0552f8ce37438d02f59e810583b71b0a1b4d31dc38e5e2b2517acb1",
    "02": "65e64c6b9415f389dfda5182ec3a269836925b04166ea82f47b230e54980d0a4",
    "03": "f746e2f90e4dccd7bbbdc18bdd6374e455ddb7fc044504a0a42edc8507cf1aa0",
    "04": "fbcf9d5d3b946dc53cff2e9954abb8c8172960ac35b1bf80c3ca240b4feda140",
    "05": "a53baa7b0faea832d45f8a5b9a234b2b6d4ca92bf5c98baeada4a935cc2f1183",
    "06": "57d8c612469359da78b7c16647cc6979be461eb03b59805e7ebded51554f9ead",
    "07": "feaa1e8f320e037709a51e30881fe8076a45fc06611a09bbd87e76f8f3f89826",
    "08": "f4a9d39c5c64bc5457de84b10a4c4b47f3bb6257e9f396ffa61d290015f178d2",
    "09": "6f41f2b755c97185167d887d95180ca4c754578f81cd30fe8119df1e20bb27d5",
    "10": "4a0147bf1d52c6853176777554165d79a01656ddb8f8474da48b65d6218b664e",
    "11": "02e468bbb652ff0da18eeb73932f09813150ef95155ba7669831849da8517196",
    "12": "5d0a47dd3ff4d821cc758e388a49da5744bf86dee423ed93bf727472a8454d8d",
    "13": "d11cf676fbd5b9316fe30acbca98c854cf88dbcee74a5fe22092ac91ccd8d3a1",
    "14": "7b8d1783c1b5b71b454644169d848b28fa57a33ca4a9b49ff88ad897b8aea570",
    "15": "a896e39351622c2e138195780ba267811d7d162df0da0091126550f5de3b74ff",
    "16": "f48c442569883055440a930ad098b4e747d72deb6369f529e4486c36b0cbfe81",
}


def download(
    destination: str | Path,
    *,
    base_url: str = BASE_URL,
    checksums: dict[str, str] | None = None,
    progress: bool = True,
    attempts: int = 4,
    pause_s: float = 1.0,
) -> list[Path]:
    """Download the label maps into a folder that ``MULTIRECON_ANATOMIES`` may then name.

    Files that are there with the right checksum are kept, a part of a file is continued, and a file gets its name only
    after its checksum was found right.

    Args:
        destination: folder; made if missing.
        base_url: address of the folder on the server.
        checksums: anatomy -> SHA-256; all 16 public maps if None.
        progress: show a progress bar.
        attempts: how often a broken connection is tried again, per file.
        pause_s: wait before the second attempt in seconds; it doubles each time.

    Returns:
        The files, in order.

    Raises:
        ValueError: if a downloaded file does not match its checksum.
        OSError: if the server cannot be reached or does not have a file.
    """
    folder = Path(destination)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = CHECKSUMS if checksums is None else checksums
    paths = []
    for anatomy, digest in tqdm(wanted.items(), desc="label maps", unit="file", disable=not progress or None):
        path = folder / f"training_seg_{anatomy}.nii.gz"
        if not (path.exists() and file_sha256(path) == digest):
            part = path.with_name(path.name + ".part")
            url = f"{base_url.rstrip('/')}/{path.name}"
            fetch(url, part, attempts=attempts, pause_s=pause_s, progress=progress)
            found = file_sha256(part)
            if found != digest:
                part.unlink()
                raise ValueError(f"base_url: expected {url} with SHA-256 {digest}, got {found}")
            os.replace(part, path)
        paths.append(path)
    return paths
