"""
The wheel, installed into its own environment with pytest and pytest-xdist, as Airflow and a user see it.

``.ci/run`` builds or finds it, installs it, and sets ``IMAGEN_PYTHON``, ``IMAGEN_WHEEL`` and ``IMAGEN_SDIST``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from doc_snippets import run_shown_commands, write_shown_files

from airflow_provider_imagen import __version__

PYTHON = Path(os.environ["IMAGEN_PYTHON"])
WHEEL = Path(os.environ["IMAGEN_WHEEL"])
SDIST = Path(os.environ["IMAGEN_SDIST"])
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "example_dags"

pytestmark = pytest.mark.timeout(700)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("airflow")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
    }


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [str(PYTHON.parent / command[0]), *command[1:]],
        env=environment,
        cwd=environment["AIRFLOW_HOME"],  # not the checkout, whose package would otherwise be imported
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_airflow_lists_the_provider_its_hook_and_its_connection_type(environment: dict[str, str]) -> None:
    providers = json.loads(run(environment, "airflow", "providers", "list", "--output", "json"))
    (ours,) = [provider for provider in providers if provider["package_name"] == "airflow-provider-imagen"]
    assert ours["version"] == __version__

    hooks = json.loads(run(environment, "airflow", "providers", "hooks", "--output", "json"))
    (hook,) = [hook for hook in hooks if hook["connection_type"] == "imagen"]
    assert hook["class"] == "airflow_provider_imagen.hooks.imagen.ImagenHook"
    assert hook["conn_id_attribute_name"] == "imagen_conn_id"
    assert hook["hook_name"] == "AI/ML API Images"


def test_airflow_links_to_the_documentation_of_the_provider(environment: dict[str, str]) -> None:
    """As shown by Admin > Providers."""
    out = run(
        environment,
        "python",
        "-c",
        "from airflow.api_fastapi.core_api.services.public.providers import _provider_mapper;"
        "from airflow.providers_manager import ProvidersManager;"
        "print(_provider_mapper(ProvidersManager().providers['airflow-provider-imagen']).documentation_url)",
    )
    assert out.splitlines()[-1] == "https://github.com/airflow-provider-imagen/airflow-provider-imagen#readme"


def test_airflow_shows_the_options_and_commands(environment: dict[str, str]) -> None:
    options = run(environment, "airflow", "config", "list", "--section", "imagen", "--include-descriptions")
    for name in ("allowed_download_hosts", "grace_seconds", "input_roots"):
        assert f"{name} =" in options
    assert "Hosts in private networks" in options
    assert "imagen_quickstart" in run(environment, "airflow", "imagen", "examples")


def test_every_example_can_be_printed_and_is_a_dag_file(environment: dict[str, str]) -> None:
    dags = Path(environment["AIRFLOW_HOME"]) / "dags"
    dags.mkdir()
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    listed = run(environment, "airflow-imagen", "examples")
    assert {line.split()[0] for line in listed.splitlines() if line.strip().startswith("imagen_")} == set(names)
    for name in names:
        (dags / f"{name}.py").write_text(run(environment, "airflow-imagen", "examples", name), encoding="utf-8")
        assert (dags / f"{name}.py").read_text("utf-8") == (EXAMPLES / f"{name}.py").read_text("utf-8")
    report = json.loads(run(environment, "airflow-imagen", "check", "--json", str(dags)))
    assert report["broken"] == []


def test_the_installed_operator_and_decorator_import_without_the_checkout(environment: dict[str, str]) -> None:
    out = run(
        environment,
        "python",
        "-c",
        "import airflow_provider_imagen, airflow_provider_imagen.operators.imagen as o;"
        "from airflow.sdk import task; task.imagen; print(airflow_provider_imagen.__file__, o.ImagenGenerateOperator)",
    )
    assert "site-packages" in out.splitlines()[-1]


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_the_shown_tests_of_a_dag_pass_in_a_new_project(tmp_path: Path, options: tuple[str, ...]) -> None:
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    home.mkdir()
    write_shown_files(ROOT / "docs" / "guides" / "test-your-dags.md", project)
    done = subprocess.run(
        [PYTHON.parent / "pytest", *options],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("page", "made"),
    [("picture-book", ["hero.png", "page-04.png", "book.html"]), ("campaign", ["teapot.png", "poster.png"])],
)
def test_the_commands_on_the_page_of_an_example_run_it(tmp_path: Path, page: str, made: list[str]) -> None:
    run_shown_commands(
        "run", ROOT / "docs" / "examples" / f"{page}.md", home=tmp_path, python=PYTHON, timeout_seconds=300
    )
    (folder,) = tmp_path.glob("imagen-pictures/*")
    assert {path.name for path in folder.iterdir()} >= {*made, "metadata.jsonl"}


def test_the_dependencies_are_complete(environment: dict[str, str]) -> None:
    run(environment, "python", "-m", "pip", "check")


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        names = wheel.namelist()
        metadata = Parser().parsestr(
            wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        )
    tops = {name.split("/")[0] for name in names}
    assert tops == {"airflow_provider_imagen", f"airflow_provider_imagen-{__version__}.dist-info"}
    for needed in (
        "py.typed",
        "catalogue/models.json",
        "sandbox/model_specs.json",
        *(path.relative_to(EXAMPLES.parent).as_posix() for path in EXAMPLES.rglob("*") if _is_example_file(path)),
    ):
        assert f"airflow_provider_imagen/{needed}" in names
    assert not [name for name in names if name.endswith((".pyc", ".orig", ".rej"))]
    assert not [name for name in names if "refresh" in name or "check_sandbox" in name]  # scripts of the project
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Framework :: Apache Airflow :: Provider" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) >= {"s3", "gcs", "azure"}


def test_the_wheel_and_the_sdist_hold_the_files_that_the_other_tests_ran_on() -> None:
    """A release publishes files that were built elsewhere."""
    with zipfile.ZipFile(WHEEL) as wheel:
        built = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    examples = f"airflow_provider_imagen/{EXAMPLES.name}/"
    with tarfile.open(SDIST) as sdist:
        files = {entry.name.split("/", 1)[1]: sdist.extractfile(entry) for entry in sdist if entry.isfile()}
        built |= {name: file.read() for name, file in files.items() if file is not None and name != "PKG-INFO"}
    for name, content in built.items():
        here = ROOT / (f"{EXAMPLES.name}/{name.removeprefix(examples)}" if name.startswith(examples) else name)
        assert content == here.read_bytes(), name


def _is_example_file(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def test_the_sdist_holds_the_build_and_test_files_and_nothing_else(tmp_path: Path) -> None:
    with tarfile.open(SDIST) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
        sdist.extractall(tmp_path, filter="data")
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        *("airflow_provider_imagen", "benchmarks", "dev", "docs", "example_dags", "tests", ".ci"),
        *("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md", "SECURITY.md"),
        *("pyproject.toml", ".gitignore"),
    }
    assert not [name for name in names if name.endswith((".pyc", ".orig", ".rej", ".db", ".log"))]
    (root,) = tmp_path.iterdir()
    done = subprocess.run(  # with the tools the project was installed with, from the unpacked files
        [sys.executable, "-m", "pytest", "-q", f"--basetemp={tmp_path / 'tmp'}", "tests/test_readme.py"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_metadata_is_what_the_package_index_shows() -> None:
    """It holds nothing that the index would reject or show as plain text."""
    with zipfile.ZipFile(WHEEL) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Name"] == "airflow-provider-imagen"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(metadata["Summary"]) <= 512
    classifiers = metadata.get_all("Classifier", [])
    for version in ("3.11", "3.12", "3.13", "3.14"):
        assert f"Programming Language :: Python :: {version}" in classifiers
