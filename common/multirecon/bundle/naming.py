"""Names and versions that survive MONAI's parser, MONAI Label and the archive format."""

from __future__ import annotations

import re

__all__ = ["check_name", "check_version"]

# Label guesses what a bundle does from these words in the name of its folder.
RESERVED_WORDS = ("segmentation", "detection", "classification", "deepedit")


def check_name(name: str) -> str:
    """Return the name of a bundle if every tool can live with it.

    Raises:
        ValueError: saying which rule it breaks.

    Example:
        >>> check_name("sense_mr")
        'sense_mr'
        >>> check_name("joint_vae")
        Traceback (most recent call last):
        ...
        ValueError: name: expected no '_v' (MONAI cuts archive names there), got 'joint_vae'
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", name):
        raise ValueError(f"name: expected '<method>_<modalities>' in lower-case letters and digits, got {name!r}")
    if "_v" in name:
        raise ValueError(f"name: expected no '_v' (MONAI cuts archive names there), got {name!r}")
    for word in RESERVED_WORDS:
        if word in name:
            raise ValueError(f"name: expected no {word!r} (MONAI Label guesses a type from it), got {name!r}")
    return name


def check_version(version: str) -> str:
    """Return the version if each of its three parts is one digit (MONAI sorts versions as text).

    Raises:
        ValueError: otherwise.
    """
    if not re.fullmatch(r"[0-9]\.[0-9]\.[0-9]", version):
        raise ValueError(f"version: expected three parts of one digit each, such as '0.1.0', got {version!r}")
    return version
