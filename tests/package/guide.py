"""Reader of the command blocks in docs/operations.md."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.places import ROOT

GUIDE = ROOT / "docs" / "operations.md"


@dataclass(frozen=True)
class Block:
    """Commands, and the names of the nodes to run them on."""

    nodes: list[str]
    commands: str


def blocks(chapter: str) -> Iterator[Block]:
    """Yield the blocks of commands of a chapter, in order."""
    (text,) = re.findall(rf"(?ms)^## {chapter}\n(.*?)^## ", GUIDE.read_text())
    for found in re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", text):
        first, _, commands = textwrap.dedent(found).partition("\n")
        assert first.startswith("# on "), f"for which node? {first}"
        yield Block(re.findall(r"\bnode\d", first), commands)
