"""The README is short, is shown the same by GitHub and by the package index, and its commands are what CI runs."""

from __future__ import annotations

import re
import subprocess

import pytest
from doc_snippets import PAGES, README, ROOT, shown_commands

TEXT = PAGES[README]


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 200


def test_its_links_and_images_also_work_on_the_package_index() -> None:
    targets = re.findall(r"\]\(([^)]+)\)|<(?:img|source)[^>]+src(?:set)?=\"([^\"]+)\"", TEXT)
    assert all(target.startswith("https://") for pair in targets for target in pair if target)


@pytest.mark.parametrize(("mark", "page"), [("try", "README.md"), ("tests", "CONTRIBUTING.md")])
def test_ci_runs_the_commands_that_are_shown(mark: str, page: str) -> None:
    command = shown_commands(mark)
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    shown = subprocess.run(
        ["bash", "-c", f"{_function(script, 'shown_command')}\nshown_command {mark} {page}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.strip() == command
    if mark == "try":
        assert f'bash -c "$(shown_command try {page})"' in script
    else:  # with a measuring wrapper around pytest
        assert command.count("-m pytest") == 1
        assert f"tests=$(shown_command tests {page})\n" in script
        assert re.search(r'bash -c "\$\{tests/-m pytest/\$measure -m pytest [^}]*\}"\n', script)


def _function(script: str, name: str) -> str:
    return script[script.index(f"{name}() {{") :].split("\n}\n", 1)[0] + "\n}"
