"""The README says what the code does: its tables, examples and commands are compared with it."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest

from airflow_provider_imagen import exceptions
from airflow_provider_imagen.generation.results import RunResult
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def _table(mark: str) -> list[list[str]]:
    """Give the rows of the table behind a mark, without its head."""
    lines = README.split(f"<!-- {mark} -->\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_table_of_arguments_is_that_of_the_operator() -> None:
    parameters = inspect.signature(ImagenGenerateOperator.__init__).parameters
    told = {
        name.strip("`"): (default.strip("`").replace('"', "'"), templated == "✓")
        for name, default, templated, _ in _table("arguments")
    }
    real = {
        name: (repr(parameter.default), name in ImagenGenerateOperator.template_fields)
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert told == real
    assert list(told) == list(real)


def test_every_argument_is_documented_in_the_docstring_too() -> None:
    documented = re.findall(r":param (\w+):", inspect.getdoc(ImagenGenerateOperator) or "")
    parameters = inspect.signature(ImagenGenerateOperator.__init__).parameters
    assert documented == [name for name in parameters if name not in ("self", "kwargs")]


def test_the_table_of_errors_is_complete_and_right_about_retries() -> None:
    classes = {
        name: error
        for name, error in vars(exceptions).items()
        if inspect.isclass(error) and issubclass(error, Exception) and name != "ImagenError"
    }
    told = {row[0].strip("`"): row[2] for row in _table("errors")}
    assert set(told) == set(classes)
    for name, error in classes.items():
        helps = getattr(error, "retry_helps", False)
        expected = "if one of them does" if isinstance(helps, property) else "yes" if helps else "no"
        assert told[name] == expected, name
    tree = exceptions.__doc__ or ""
    assert all(name in tree for name in classes)


@pytest.mark.parametrize("name", re.findall(r"<!-- example: (\w+) -->", README))
def test_an_example_in_the_readme_is_the_one_that_runs(name: str) -> None:
    source = (ROOT / "example_dags" / f"{name}.py").read_text("utf-8")
    region = source.split(f"# [START {name}]\n", 1)[1].split(f"# [END {name}]", 1)[0]
    shown = README.split(f"<!-- example: {name} -->\n", 1)[1]
    assert shown.startswith(f"```python\n{inspect.cleandoc(region)}\n```\n")


def test_every_example_is_in_the_readme_or_linked_from_it() -> None:
    for path in (ROOT / "example_dags").glob("*.py"):
        assert path.stem in README, path.name


def test_the_summary_has_the_keys_the_readme_names() -> None:
    source = inspect.getsource(RunResult.summary)
    for key in re.findall(r'"(\w+)":', source):
        assert f"`{key}`" in README, key


@pytest.mark.parametrize("mark", ["try", "tests"])
def test_ci_runs_the_very_commands_the_readme_shows(mark: str) -> None:
    command = README.split(f"<!-- {mark} -->\n```bash\n", 1)[1].split("\n```", 1)[0]
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    shown = subprocess.run(
        ["bash", "-c", f"{_function(script, 'readme_command')}\nreadme_command {mark}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.strip() == command
    assert f'bash -c "$(readme_command {mark})"' in script


def _function(script: str, name: str) -> str:
    return script[script.index(f"{name}() {{") :].split("\n}\n", 1)[0] + "\n}"


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
