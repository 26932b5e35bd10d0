"""The zoo on the command line; see :mod:`multirecon.__main__`. Imports wait for the call, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["pack", "zoo_download", "zoo_list", "zoo_publish", "zoo_verify"]


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


def zoo_publish(folder: Path, *, key: Path, url: str = "", huggingface: bool = True) -> None:
    """Sign a folder of archives as a zoo that stock MONAI and `multirecon zoo` read.

    Args:
        folder: folder with archives of `multirecon pack`.
        key: Ed25519 private key (openssl genpkey -algorithm ed25519 -out FILE); keep it away from the folder.
        url: address under which the folder will be served.
        huggingface: also prepare one Hugging Face repository a bundle (--nohuggingface: do not).
    """
    from .publish import publish
    from .signature import fingerprint, load_private_key

    private = load_private_key(key)
    if key.absolute().parent == folder.absolute():
        raise ValueError(f"key: expected a file outside the folder that will be served, got {str(key)!r}")
    manifest = publish(folder, private, url=url, huggingface=huggingface)
    print(f"manifest {manifest.serial}: {len(manifest.entries)} archives, key {fingerprint(private.public_key())}")


def zoo_list(source: str, *, key: str = "") -> None:
    """List what a zoo offers.

    Args:
        source: folder of the zoo, or its address.
        key: the zoo's public key; without it the signature is not checked.
    """
    from .manifest import select
    from .source import Source

    manifest = Source(source).manifest(_public_key(key))
    latest = select(manifest, ())
    for entry in manifest.entries:
        mark = " " if entry in latest else "-"
        print(f"{mark} {entry.name:28} {entry.version:7} {entry.size / 1e6:7.2f} MB  {entry.task}")
    print(f"manifest {manifest.serial}, {'signature checked' if key else 'signature not checked (no --key)'}")


def zoo_verify(source: str, *, key: str = "", bundle_dir: str = "", progress: bool = True) -> None:
    """Check every archive of a zoo, or, with bundle_dir, bundles that were downloaded by whatever tool.

    Args:
        source: folder of the zoo, or its address.
        key: the zoo's public key; without it the signature is not checked.
        bundle_dir: folder of downloaded bundles to check against the zoo, instead of its archives.
        progress: show progress bars (--noprogress: do not).
    """
    import tempfile

    from .publish import verify, verify_installed
    from .source import Source

    public = _public_key(key)
    if bundle_dir:
        found = verify_installed(Source(source).manifest(public), Path(bundle_dir))
        for name, faults in found.items():
            print(f"{'FAIL' if faults else 'ok':4}  {name}  {'; '.join(faults)}".rstrip())
        if any(found.values()):
            count = sum(map(bool, found.values()))
            raise ValueError(f"bundle_dir: expected bundles as they were published, got {count} that differ")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            manifest = verify(Source(source), public, Path(scratch), progress=progress)
        for entry in manifest.entries:
            print(f"ok    {entry.file}  {entry.sha256}")
    print("signature checked" if key else "signature not checked (no --key)")


def zoo_download(
    source: str,
    *names: str,
    bundle_dir: Path = Path("bundles"),
    key: str = "",
    unsigned: bool = False,
    allow_downgrade: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Bring bundles of a zoo into a folder, checked before they are unpacked; again, it upgrades them in place.

    Args:
        source: folder of the zoo, or its address.
        names: NAME or NAME:VERSION; every bundle by default.
        bundle_dir: folder of the bundles.
        key: the zoo's public key.
        unsigned: believe the server, without a key.
        allow_downgrade: accept older versions than those there.
        overwrite: replace bundles whose files you edited.
        progress: show progress bars (--noprogress: do not).
    """
    from .install import download
    from .source import Source

    if bool(key) == unsigned:
        raise ValueError("key: expected the zoo's public key (--key FILE), or --unsigned to believe the server")
    download(
        Source(source),
        names,
        bundle_dir,
        key=_public_key(key),
        allow_downgrade=allow_downgrade,
        overwrite=overwrite,
        progress=progress,
    )


def _public_key(path: str) -> Any:
    from .signature import load_public_key

    return load_public_key(Path(path)) if path else None
