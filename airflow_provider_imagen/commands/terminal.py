"""Terminal output through Rich, which Airflow depends on."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMNS_OF_A_PIPE = 160


def print_json(value: Any) -> None:
    """Write JSON to stdout, without wrapping or colours."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_error(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text + "\n")


def printable(text: str, limit: int) -> str:
    """
    Return text from outside as one line without control, formatting and other invisible characters.

    :param limit: most characters returned
    """
    text = " ".join("".join(each if each.isprintable() else " " for each in text[: 2 * limit]).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class Terminal:
    """Writes text and tables to stdout, without a terminal's width if that is a file or pipe."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = _COLUMNS_OF_A_PIPE

    def line(self, text: str) -> None:
        """Write one line."""
        self._console.print(text, markup=False, soft_wrap=not self._console.is_terminal)

    def heading(self, text: str) -> None:
        """Write one line in bold."""
        self._console.print(text, style="bold", markup=False, soft_wrap=not self._console.is_terminal)

    def code(self, text: str) -> None:
        """Write code without wrapping, so that it can be copied."""
        self._console.print(text.rstrip(), markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """
        Write a table.

        :param columns: column headers
        :param rows: cells, one per column
        :param right: headers of the right-aligned columns
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(
                column, justify="right" if column in right else "left", no_wrap=number == 0, overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)
