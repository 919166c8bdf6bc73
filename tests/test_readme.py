"""The README's tables, examples and commands match the code."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import task
from doc_snippets import shown_commands

from airflow_provider_imagen import exceptions
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.run_report import RunSummary
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from msgspec import Struct

    from airflow_provider_imagen.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def _table(mark: str) -> list[list[str]]:
    """Return the rows of the table after a mark, without its header."""
    lines = README.split(f"<!-- {mark} -->\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_argument_table_matches_the_operator() -> None:
    parameters = inspect.signature(ImagenGenerateOperator.__init__).parameters
    documented = {
        name.strip("`"): (default.strip("`").replace('"', "'"), templated == "✓")
        for name, default, templated, _ in _table("arguments")
    }
    real = {
        name: (repr(parameter.default), name in ImagenGenerateOperator.template_fields)
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert documented == real
    assert list(documented) == list(real)


def test_the_docstring_documents_every_argument() -> None:
    documented = re.findall(r":param (\w+):", inspect.getdoc(ImagenGenerateOperator) or "")
    parameters = inspect.signature(ImagenGenerateOperator.__init__).parameters
    assert documented == [name for name in parameters if name not in ("self", "kwargs")]


def test_the_error_table_is_complete_and_correct_about_retries() -> None:
    classes = {
        name: error
        for name, error in vars(exceptions).items()
        if inspect.isclass(error) and issubclass(error, Exception) and name != "ImagenError"
    }
    documented = {row[0].strip("`"): row[2] for row in _table("errors")}
    assert set(documented) == set(classes)
    for name, error in classes.items():
        helps = getattr(error, "retry_helps", False)
        expected = "if one of them does" if isinstance(helps, property) else "yes" if helps else "no"
        assert documented[name] == expected, name
    tree = exceptions.__doc__ or ""
    assert all(name in tree for name in classes)


@pytest.mark.parametrize("name", re.findall(r"<!-- example: (\w+) -->", README))
def test_an_example_in_the_readme_matches_its_file(name: str) -> None:
    source = (ROOT / "example_dags" / f"{name}.py").read_text("utf-8")
    region = source.split(f"# [START {name}]\n", 1)[1].split(f"# [END {name}]", 1)[0]
    shown = README.split(f"<!-- example: {name} -->\n", 1)[1]
    assert shown.startswith(f"```python\n{textwrap.dedent(region).strip()}\n```\n")


def test_every_example_is_quoted_in_the_readme_or_on_a_page_of_its_own() -> None:
    pages = [path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")]
    for path in (ROOT / "example_dags").glob("*.py"):
        marks = (f"<!-- example: {path.stem} -->", f"<!-- file: example_dags/{path.name} -->")
        assert any(mark in text for text in (README, *pages) for mark in marks), path.name


@pytest.mark.parametrize(("xcom", "record"), [("images", ImageRecord), ("summary", RunSummary)])
def test_the_readme_names_every_key_of_an_xcom(xcom: str, record: type[Struct]) -> None:
    (line,) = [line for line in README.splitlines() if line.startswith(f"- XCom **`{xcom}`**")]
    missing = [name for name in record.__struct_fields__ if f"`{name}`" not in line]
    assert missing == []


@pytest.mark.parametrize("mark", ["try", "tests"])
def test_ci_runs_the_commands_shown_in_the_readme(mark: str) -> None:
    command = shown_commands(mark)
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    shown = subprocess.run(
        ["bash", "-c", f"{_function(script, 'readme_command')}\nreadme_command {mark}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.strip() == command
    if mark == "try":
        assert 'bash -c "$(readme_command try)"' in script
    else:  # with a measuring wrapper around pytest
        assert command.count("-m pytest") == 1
        assert "tests=$(readme_command tests)\n" in script
        assert re.search(r'bash -c "\$\{tests/-m pytest/\$measure -m pytest [^}]*\}"\n', script)


def _function(script: str, name: str) -> str:
    return script[script.index(f"{name}() {{") :].split("\n}\n", 1)[0] + "\n}"


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize("command", re.findall(r"^```console\n\$ airflow-imagen (.+)$", README, re.MULTILINE))
def test_a_command_prints_what_the_readme_shows(
    command: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_fault(Fault("withdrawn", model="flux/schnell", replaced_by="flux/dev", times=None))
    monkeypatch.chdir(ROOT)
    shown, status = README.split(f"$ airflow-imagen {command}\n", 1)[1].split("\n```", 1)[0], 0
    if "\n$ echo $?\n" in shown:
        shown, status = shown.split("\n$ echo $?\n")

    assert main(command.split()) == int(status)
    assert _lines(capsys.readouterr().out) == _lines(shown)


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize(("expression", "shown"), re.findall(r"^>>> (.+)\n(.+)$", README, re.MULTILINE))
def test_an_expression_returns_what_the_readme_shows(expression: str, shown: str) -> None:
    assert repr(eval(expression, {"ImagenHook": ImagenHook})) == shown


_SNIPPETS = re.findall(r"(?<!-->\n)^```python\n(?!>>>)(.+?)^```$", README, re.MULTILINE | re.DOTALL)
"""Python snippets that do not come from an example."""


def test_every_snippet_is_valid_python() -> None:
    for snippet in _SNIPPETS:
        compile(snippet, "a snippet of the README", "exec")


@pytest.mark.parametrize("name", ["paint", "models_are_alive", "keep"])
@pytest.mark.usefixtures("imagen_connection")
def test_tasks_that_use_the_hook_work_as_shown(name: str, sandbox: Sandbox, tmp_path: Path) -> None:
    (snippet,) = [each for each in _SNIPPETS if each.startswith(f"@task\ndef {name}(")]
    names: dict[str, Any] = {"task": task, "ImagenHook": ImagenHook}
    exec(snippet.replace("s3://aws_default@media", str(tmp_path)), names)
    function = names[name].function

    if name == "paint":
        made = function()
        assert (made["bytes"] > 1000, made["usd"]) == (True, float(sandbox.ledger()[0].usd))
    elif name == "models_are_alive":
        function()
        sandbox.add_fault(Fault("withdrawn", model="flux/schnell", times=None))
        with pytest.raises(ValueError, match="flux/schnell: withdrawn"):
            function()
    else:
        (generation,) = ImagenHook().generate_images("a logo")
        record = function(generation.urls[0])
        assert Path(record["path"]).parent == tmp_path / "logos"
        assert Path(record["path"]).is_file()


def _lines(text: str) -> list[str]:
    """Return the non-empty lines, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _block(mark: str) -> str:
    return README.split(f"<!-- {mark} -->\n```", 1)[1].split("\n", 1)[1].split("\n```", 1)[0]


def _airflow(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        cwd=environment["AIRFLOW_HOME"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_connections_from_environment_variables_work(monkeypatch: pytest.MonkeyPatch) -> None:
    given = re.findall(r"^export AIRFLOW_CONN_(\w+)='(.+)'$", _block("connection: environment"), re.MULTILINE)
    assert [name for name, _ in given] == ["IMAGEN_DEFAULT", "IMAGEN_SANDBOX"]
    for name, value in given:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", value.replace("<your key>", "yours"))
    assert ImagenHook().get_conn().settings.api_key == "yours"
    hook = ImagenHook("imagen_sandbox")
    try:
        ok, message = hook.test_connection()
    finally:
        hook.close()
    assert ok, message


@pytest.mark.slow
@pytest.mark.timeout(420)  # four Airflow commands: seconds each, much longer on a busy machine
def test_the_commands_for_airflows_database_work(tmp_path: Path) -> None:
    database = {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
        "AIML_API_KEY": "from the readme",
    }
    commands = f"airflow db migrate && {_block('connection: database')} && {_block('pool')}"
    _airflow(database, "bash", "-c", commands)

    with sqlite3.connect(tmp_path / "airflow.db") as rows:
        assert list(rows.execute("select conn_id, conn_type from connection")) == [("imagen_default", "imagen")]
        assert ("imagen", 8) in list(rows.execute("select pool, slots from slot_pool"))


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_secrets_backend_provides_the_connection(sandbox: Sandbox, tmp_path: Path) -> None:
    settings = configparser.ConfigParser()
    settings.read_string(_block("connection: secrets"))
    secrets = json.loads(_block("connection: file").replace("<your key>", sandbox.api_key))
    secrets["imagen_default"]["host"] = sandbox.url
    (tmp_path / "connections.json").write_text(json.dumps(secrets))
    (tmp_path / "dag.py").write_text("")
    backend = settings["secrets"]["backend_kwargs"].replace("/run/secrets", str(tmp_path))

    out = _airflow(
        {
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__SECRETS__BACKEND": settings["secrets"]["backend"],
            "AIRFLOW__SECRETS__BACKEND_KWARGS": backend,
        },
        "airflow-imagen",
        "check",
        str(tmp_path),
    )
    assert "can generate images" in out
    assert "google/imagen-4.0-generate-001: alive (connection imagen_default)" in out


def test_the_table_of_contents_lists_every_section_in_order() -> None:
    sections = [line.removeprefix("## ") for line in README.splitlines() if line.startswith("## ")]
    anchors = [re.sub(r"[^\w -]", "", section).lower().replace(" ", "-") for section in sections]
    contents = README.split("\n## ", 1)[0]
    assert re.findall(r"\]\(#([\w-]+)\)", contents) == anchors


def test_links_to_files_resolve() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
