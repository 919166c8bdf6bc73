"""
The commands, code and tables that the documentation shows, to be run and checked as printed.

A comment such as ``<!-- first dag -->`` above a block or a table marks it, so that a test can find it on whichever page
it stands. ``<!-- not run: REASON -->`` says why no test runs the block.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = {
    path: path.read_text("utf-8") for path in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
"""The text of every page."""

_BLOCK = re.compile(
    r"^ *(?:<!-- (?P<mark>[^\n]+?) -->\n *)?```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block of code on a page, with the mark above it."""

    page: Path
    mark: str
    language: str
    text: str

    @property
    def where(self) -> str:
        """Where it stands, as the id of a test."""
        return f"{self.page.relative_to(ROOT)}: {self.mark or self.text.partition(chr(10))[0]}"


BLOCKS: Final = [
    Block(page, match["mark"] or "", match["language"], match["text"])
    for page, text in PAGES.items()
    for match in _BLOCK.finditer(text)
]
"""Every block of every page."""


def find_block(mark: str, page: Path | None = None) -> Block:
    """Return the one block with a mark, on a page if it is given."""
    (block,) = [each for each in BLOCKS if each.mark == mark and page in (None, each.page)]
    return block


def find_blocks(kind: str) -> list[Block]:
    """Return the blocks whose marks are ``kind: NAME``."""
    return [block for block in BLOCKS if block.mark.startswith(f"{kind}: ")]


def find_table(mark: str) -> list[list[str]]:
    """Return the rows of the table with a mark, without its header."""
    (text,) = [text.split(f"<!-- {mark} -->\n", 1)[1] for text in PAGES.values() if f"<!-- {mark} -->\n|" in text]
    lines = text.split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def shown_commands(mark: str, page: Path | None = None) -> str:
    """Return the commands in the block with a mark."""
    return find_block(mark, page).text.rstrip("\n")


def run_shown_commands(mark: str, page: Path, *, home: Path, python: Path, timeout_seconds: float) -> str:
    """Run the commands of a page in an empty home with the tools of a virtual environment; return their output."""
    done = subprocess.run(
        ["bash", "-ec", shown_commands(mark, page)],
        env={"HOME": str(home), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_shown_files(page: Path, folder: Path) -> list[str]:
    """Write each file that a page marks with ``<!-- file: NAME -->`` to a folder, and return their names."""
    files = {block.mark.removeprefix("file: "): block.text for block in find_blocks("file") if block.page == page}
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return [*files]
