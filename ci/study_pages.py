"""Pages whose tables scripts fill: text by hand, and between two marks what a script printed.

<!-- study NAME -->
<!-- end study -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from multirecon.files import atomic_path

__all__ = ["fill", "publish", "table"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the marks of a block of a page, whole or not at all.

    Args:
        page: a Markdown file with the marks.
        name: name of the block.
        text: what shall stand there.

    Raises:
        ValueError: unless the page has exactly one such block.
    """
    old = page.read_text(encoding="utf-8")
    block = re.compile(rf"^(<!-- study {re.escape(name)} -->)\n.*?^(<!-- end study -->)$", re.M | re.S)
    if len(block.findall(old)) != 1:
        raise ValueError(f"{page}: expected one block '<!-- study {name} -->' ... '<!-- end study -->', "
                         f"got {len(block.findall(old))}")  # fmt: skip
    new = block.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", old)
    if new != old:
        with atomic_path(page) as draft:
            draft.write_text(new, encoding="utf-8")


def publish(blocks: Mapping[str, str], page: Path | None) -> None:
    """Print the texts of blocks, and put them into a page if there is one."""
    for name, text in blocks.items():
        print(text, flush=True)
        if page:
            fill(page, name, text)
