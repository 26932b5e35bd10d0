"""The zoo on the command line; see :mod:`multirecon.__main__`. Imports wait for the call, so that help is quick."""

from __future__ import annotations

from pathlib import Path

__all__ = ["pack"]


def pack(*names: str, output: Path, folder: str = "", url: str = "") -> None:
    """Write one self-contained archive a bundle, with model_info.json and args files for stock MONAI.

    Args:
        names: bundles, by name or folder; every bundle by default.
        output: folder of the archives.
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
        url: address under which the output folder will be served; by default that of the folder itself.
    """
    from ..bundle.folder import discover, find
    from .pack import pack as write

    write([find(n, folder or None) for n in names] if names else discover(folder or None), output, url=url)
