"""The pages' tables, examples and commands match the code."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from doc_snippets import BLOCKS, PAGES, ROOT, Block, find_block, find_blocks, find_table, shown_commands

from airflow_provider_imagen import exceptions
from airflow_provider_imagen._compat import get_dag_bag
from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.sandbox.model_specs import all_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

CONSOLE = [block for block in BLOCKS if block.language == "console" and not block.mark]
EXPRESSIONS = [block for block in BLOCKS if block.text.startswith(">>> ")]
RUN_BY_KIND = ("dag", "example", "file", "not run", "task")
"""Kinds of marks that the tests below check, and the one that gives the reason why a block is not run."""


def by_place(blocks: list[Block]) -> Any:
    return pytest.mark.parametrize("block", blocks, ids=[block.where for block in blocks])


@by_place([block for block in BLOCKS if block.language in ("bash", "console", "python")])
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    if block in (*CONSOLE, *EXPRESSIONS) or block.mark.partition(":")[0] in RUN_BY_KIND:
        return
    assert block.mark, "mark it for the test that runs it, or with <!-- not run: REASON -->"
    sources = [*(ROOT / "tests").rglob("*.py"), ROOT / ".ci" / "run"]
    assert any(re.search(rf"[\"' ]{re.escape(block.mark)}[\"' )]", source.read_text("utf-8")) for source in sources)


@by_place(
    [block for block in BLOCKS if block.language == "python" and block not in (*EXPRESSIONS, *find_blocks("example"))]
)
def test_every_snippet_is_valid_python(block: Block) -> None:
    compile(block.text, block.where, "exec")


@by_place(find_blocks("example"))
def test_an_example_matches_its_file(block: Block) -> None:
    name = block.mark.removeprefix("example: ")
    source = (ROOT / "example_dags" / f"{name}.py").read_text("utf-8")
    region = source.split(f"# [START {name}]\n", 1)[1].split(f"# [END {name}]", 1)[0]
    assert block.text.strip() == textwrap.dedent(region).strip()


@by_place([block for block in find_blocks("file") if "example_dags/" in block.mark])
def test_an_example_on_its_own_page_matches_its_file(block: Block) -> None:
    source = (ROOT / block.mark.removeprefix("file: ")).read_text("utf-8")
    assert block.text == source.split('"""\n\n', 1)[1]  # without its docstring


def test_every_example_is_on_a_page() -> None:
    marks = {block.mark for block in BLOCKS}
    for path in (ROOT / "example_dags").glob("*.py"):
        assert marks & {f"example: {path.stem}", f"file: example_dags/{path.name}"}, path.name


@by_place(find_blocks("dag"))
def test_a_dag_file_runs(
    block: Block,
    run_dag: Callable[..., Any],
    imagen_sandbox: Sandbox,
    imagen_connection: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "shown.py"
    file.write_text(block.text.replace("s3://aws_default@media", str(tmp_path / "media")), "utf-8")
    dag_bag, _ = get_dag_bag()
    bag = dag_bag(dag_folder=str(file))
    assert bag.import_errors == {}
    (dag,) = bag.dags.values()

    run = run_dag(dag)

    assert run.state == "success"
    images = run.get_task_instance("paint").xcom_pull(task_ids="paint", key="images")
    assert all(Path(image["path"]).is_file() for image in images)
    assert imagen_sandbox.ledger() != []


def test_the_argument_table_matches_the_operator() -> None:
    parameters = inspect.signature(ImagenGenerateOperator.__init__).parameters
    documented = {
        name.strip("`"): (default.strip("`").replace('"', "'"), templated == "✓")
        for name, default, templated, _ in find_table("arguments")
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
    documented = {row[0].strip("`"): row[2] for row in find_table("errors")}
    assert set(documented) == set(classes)
    for name, error in classes.items():
        helps = getattr(error, "retry_helps", False)
        expected = "if one of them does" if isinstance(helps, property) else "yes" if helps else "no"
        assert documented[name] == expected, name
    tree = exceptions.__doc__ or ""
    assert all(name in tree for name in classes)


def test_every_command_is_in_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    page = PAGES[ROOT / "docs" / "reference" / "cli.md"]
    assert re.findall(r"^## (\w+)\n\n```\{generated\} command_help \1\n", page, re.MULTILINE) == re.findall(
        r"^\| `(\w+)` ", page, re.MULTILINE
    )
    assert sorted(re.findall(r"^## (\w+)", page, re.MULTILINE)) == sorted(commands)


@pytest.mark.usefixtures("imagen_connection")
@by_place(CONSOLE)
def test_a_command_prints_what_its_page_shows(
    block: Block, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_fault(Fault("withdrawn", model="flux/schnell", replaced_by="flux/dev", times=None))
    monkeypatch.chdir(ROOT)
    command, _, shown = block.text.removeprefix("$ airflow-imagen ").partition("\n")
    shown, _, status = shown.partition("\n$ echo $?\n")

    assert main(shlex.split(command)) == int(status or 0)
    assert _lines(capsys.readouterr().out) == _lines(shown)


@pytest.mark.usefixtures("imagen_connection")
@by_place(EXPRESSIONS)
def test_an_expression_returns_what_its_page_shows(block: Block) -> None:
    expression, shown = block.text.removeprefix(">>> ").splitlines()
    assert repr(eval(expression, {"ImagenHook": ImagenHook})) == shown


@pytest.mark.parametrize("name", [block.mark.removeprefix("task: ") for block in find_blocks("task")])
@pytest.mark.usefixtures("imagen_connection")
def test_tasks_that_use_the_hook_work_as_shown(name: str, sandbox: Sandbox, tmp_path: Path) -> None:
    names: dict[str, Any] = {"task": task, "ImagenHook": ImagenHook}
    exec(find_block(f"task: {name}").text.replace("s3://aws_default@media", str(tmp_path)), names)
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
        assert name == "keep"
        (generation,) = ImagenHook().generate_images("a logo")
        record = function(generation.urls[0])
        assert Path(record["path"]).parent == tmp_path / "logos"
        assert Path(record["path"]).is_file()


def test_the_shown_provenance_is_embedded(run_dag: Callable[..., Any], imagen_connection: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(find_block("provenance").text, names)
    with DAG("with_provenance", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint", prompt="A secret garden", output_path=tmp_path, provenance=names["provenance"]
        )

    assert run_dag(dag).state == "success"
    (file,) = tmp_path.glob("*.png")
    content = file.read_bytes()
    assert all(value.encode() in content for value in names["provenance"].values() if value is not None)
    assert b"AIPromptInformation" not in content


def _lines(text: str) -> list[str]:
    """Return the non-empty lines, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


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
    given = re.findall(r"^export AIRFLOW_CONN_(\w+)='(.+)'$", shown_commands("connection: environment"), re.MULTILINE)
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
        "AIML_API_KEY": "from the page",
    }
    commands = f"airflow db migrate && {shown_commands('connection: database')} && {shown_commands('pool')}"
    _airflow(database, "bash", "-c", commands)

    with sqlite3.connect(tmp_path / "airflow.db") as rows:
        assert list(rows.execute("select conn_id, conn_type from connection")) == [("imagen_default", "imagen")]
        assert ("imagen", 8) in list(rows.execute("select pool, slots from slot_pool"))


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_secrets_backend_provides_the_connection(sandbox: Sandbox, tmp_path: Path) -> None:
    settings = configparser.ConfigParser()
    settings.read_string(find_block("connection: secrets").text)
    secrets = json.loads(find_block("connection: file").text.replace("<your key>", sandbox.api_key))
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


def test_the_picture_book_costs_what_its_page_says() -> None:
    models = ("bytedance/seedream-v4-text-to-image", *["bytedance/seedream-v4-edit"] * 4)
    prices = [model.price.usd for each in models if (model := find_model(each)) and model.price]
    each, total = _amounts("picture-book")
    assert set(prices) == {each}
    assert sum(prices) == total


def test_the_sample_costs_what_its_page_says() -> None:
    model = all_models()["imagen-3.0-generate-002"]
    price, sample, rest = _amounts("sample-and-approve")
    assert (price, sample, rest) == (model.usd, 12 * model.usd, 188 * model.usd)


def _amounts(example: str) -> list[Decimal]:
    """Return the amounts of money on an example's page, in USD."""
    return [*map(Decimal, re.findall(r"\$(\d+\.\d+)", PAGES[ROOT / "docs" / "examples" / f"{example}.md"]))]
