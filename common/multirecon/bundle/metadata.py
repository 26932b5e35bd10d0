"""The metadata of a bundle against our own schema, offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

__all__ = ["metadata_faults", "schema", "schema_path"]

SCHEMA = "metadata.schema.json"
# What `python -m monai.bundle init_bundle` leaves for the author to fill in.
UNFILLED = ("Your Name Here", "Describe what the network predicts", "A longer description of what the network does")


def schema() -> dict[str, Any]:
    """Return the JSON schema of ``configs/metadata.json``."""
    return json.loads(resources.files(__package__).joinpath(SCHEMA).read_text(encoding="utf-8"))


def schema_path() -> Path:
    """Return the schema as a file, as ``python -m monai.bundle verify_metadata --filepath`` wants it."""
    return Path(__file__).with_name(SCHEMA)


def metadata_faults(metadata: Mapping[str, Any], *, name: str | None = None) -> list[str]:
    """Return what is wrong with the metadata of a bundle, one line a fault; empty if nothing.

    Args:
        metadata: content of ``configs/metadata.json``.
        name: name of the bundle's folder.
    """
    validator = jsonschema.Draft202012Validator(schema())
    faults = [
        f"{'.'.join(map(str, error.absolute_path)) or 'metadata'}: {_shorten(error.message)}"
        for error in sorted(validator.iter_errors(dict(metadata)), key=lambda e: [str(p) for p in e.absolute_path])
    ]
    version = metadata.get("version")
    if version not in metadata.get("changelog", {}):
        faults.append(f"changelog: expected an entry for the current version {version!r}")
    if name is not None and metadata.get("name") != name:
        faults.append(f"name: expected the folder's name {name!r}, got {metadata.get('name')!r}")
    for key, value in metadata.items():
        if isinstance(value, str) and value.startswith(UNFILLED):
            faults.append(f"{key}: expected an entry of your own, got the template's {value!r}")
    faults += _channel_faults(metadata.get("network_data_format", {}))
    return faults


def _channel_faults(network: Any) -> list[str]:
    faults = []
    for side, key in (("inputs", "image"), ("outputs", "pred")):
        try:
            tensor = network[side][key]
            count, named = tensor["num_channels"], tensor["channel_def"]
            expected = [str(i) for i in range(count)]
        except (KeyError, TypeError):
            continue  # the schema has said so
        if list(named) != expected:
            faults.append(
                f"network_data_format.{side}.{key}.channel_def: expected channels {expected}, got {list(named)}"
            )
    return faults


def _shorten(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
