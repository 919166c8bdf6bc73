"""The commands and files that the documentation shows, to be run as printed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def shown_commands(mark: str, page: Path = README) -> str:
    """Return the commands that a page shows after ``<!-- mark -->``."""
    return page.read_text("utf-8").split(f"<!-- {mark} -->\n```bash\n", 1)[1].split("\n```", 1)[0]


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


def write_readme_files(folder: Path) -> list[str]:
    """Write each file that the README marks with ``<!-- file: NAME -->``, and return their names."""
    shown = re.findall(r"^<!-- file: (\S+) -->\n```python\n(.+?)^```$", README.read_text("utf-8"), re.M | re.S)
    for name, text in shown:
        (folder / name).write_text(text, "utf-8")
    return [name for name, _ in shown]
