"""The example DAGs that come with the package."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """
    One example DAG.

    :param path: its file; an example may read other files in the same folder
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the file, without its extension."""
        return self.path.stem

    @property
    def other_files(self) -> list[str]:
        """The files that it reads, relative to its folder: those in subfolders whose names it mentions."""
        source = self.path.read_text(encoding="utf-8")
        folder = self.path.parent
        return [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*")) if path.name in source]

    @property
    def title(self) -> str:
        """First line of the docstring, without Markdown's heading marks."""
        docstring = ast.get_docstring(ast.parse(self.path.read_bytes())) or ""
        return docstring.partition("\n")[0].lstrip("# ")


def find_examples() -> dict[str, Example]:
    """Return the examples by name, in alphabetical order; empty if this installation has none."""
    package = Path(__file__).parent
    # Installed, the examples are in the package; in a checkout, beside it.
    folder = next((each for each in (package, package.parent) if (each / "example_dags").is_dir()), package)
    return {path.stem: Example(path) for path in sorted((folder / "example_dags").glob("imagen_*.py"))}
