"""SQL in files of its own: blocks that begin with their name."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

_HEAD: Final = "-- name: "


def named_blocks(package: str, file: str) -> dict[str, str]:
    """The statements of a file in a package, by name, without their comments."""
    text = files(package).joinpath(file).read_text("utf-8")
    blocks: dict[str, str] = {}

    for block in text.split(_HEAD)[1:]:
        name, _, body = block.partition("\n")
        lines = (line for line in body.splitlines() if not line.startswith("--"))
        blocks[name.strip()] = "\n".join(lines).strip()

    return blocks
