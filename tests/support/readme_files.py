"""The files that the README shows in full."""

from __future__ import annotations

import re
from pathlib import Path

_README = Path(__file__).parents[2] / "README.md"


def write_readme_files(folder: Path) -> list[str]:
    """Write each file that the README marks with ``<!-- file: NAME -->``, and return their names."""
    shown = re.findall(r"^<!-- file: (\S+) -->\n```python\n(.+?)^```$", _README.read_text("utf-8"), re.M | re.S)
    for name, text in shown:
        (folder / name).write_text(text, "utf-8")
    return [name for name, _ in shown]
