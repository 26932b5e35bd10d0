"""The note at the root of an archive: what to install, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["archive_readme", "requirements"]

# The lines between the dashes are read by the Hugging Face hub.
_TEXT = """\
---
license: apache-2.0
library_name: monai
tags:
- monai
- medical
- image-reconstruction
---
# {name} {version}

{description}. The model card is `docs/README.md`; {use}.

This folder holds all it needs but the following packages (tested versions; newer ones may do):

```
pip install {requirements}
```

`multirecon/` is this archive's own copy ({package}, SHA-256 {sha256}); it must not be mixed
with another one in one Python process. `sample/` holds one simulated measurement:

```
python -m monai.bundle run --config_file {name}/configs/inference.json --bundle_root {name} \\
    --dataset_dir {name}/sample --output_dir results
```

The configurations in `configs/` are code: `$` expressions and `_target_` names run when the bundle runs. Check where
the archive came from (`multirecon zoo download` compares signature and SHA-256) before you run it.
"""


def requirements(metadata: Mapping[str, Any]) -> list[str]:
    """Return the documented packages of a bundle as ``name==version``, sorted."""
    names = {
        "torch": metadata["pytorch_version"],
        "monai": metadata["monai_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }
    return [f"{name}=={names[name]}" for name in sorted(names, key=str.lower)]


def archive_readme(metadata: Mapping[str, Any]) -> str:
    """Return the note for the archive with these (stamped) metadata."""
    stamp = metadata["multirecon"]["package"]
    return _TEXT.format(
        name=metadata["name"],
        version=metadata["version"],
        description=metadata["description"].rstrip("."),
        use=metadata["intended_use"],
        requirements=" \\\n    ".join(" ".join(row) for row in _rows(requirements(metadata))),
        package=stamp["version"],
        sha256=stamp["sha256"][:12],
    )


def _rows(words: list[str], width: int = 5) -> list[list[str]]:
    return [words[i : i + width] for i in range(0, len(words), width)]
