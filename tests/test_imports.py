from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import airflow_provider_imagen

pytestmark = pytest.mark.slow

HEAVY = {"requests", "urllib3", "PIL", "starlette", "fastapi", "uvicorn", "jsonschema", "cryptography"}

_PROBE = """
import json, sys
{statements}
print(json.dumps(sorted(sys.modules)))
"""
_AIRFLOW = "import airflow.sdk; from airflow.sdk import BaseHook, BaseOperator, Asset, ObjectStoragePath, dag, task"


def loaded(*statements):
    """Return the modules that a fresh process has loaded after these statements."""
    code = _PROBE.format(statements="\n".join(statements))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def top_level_packages(modules):
    return {module.partition(".")[0] for module in modules}


@pytest.fixture(scope="module")
def airflow():
    """The modules that Airflow itself has loaded before it reads one of our DAG files."""
    return loaded(_AIRFLOW)


@pytest.mark.parametrize(
    "module",
    [
        "airflow_provider_imagen",
        "airflow_provider_imagen.get_provider_info",
        "airflow_provider_imagen.exceptions",
    ],
)
def test_modules_every_airflow_process_imports_need_only_the_standard_library(module):
    added = loaded(f"import {module}") - loaded("import json")

    assert top_level_packages(added) - {"airflow_provider_imagen"} <= set(sys.stdlib_module_names)
    assert not [name for name in added if name.startswith("airflow_provider_imagen.") and name != module]


@pytest.mark.parametrize(
    "module",
    [
        "airflow_provider_imagen.operators.imagen",
        "airflow_provider_imagen.decorators.imagen",
        "airflow_provider_imagen.hooks.imagen",
        "airflow_provider_imagen.policies.retry",
        "airflow_provider_imagen.notifications.imagen",
    ],
)
def test_modules_a_dag_file_imports_load_nothing_heavy(airflow, module):
    added = top_level_packages(loaded(_AIRFLOW, f"import {module}") - airflow)

    assert added & HEAVY == set()
    assert {name for name in added if not name.startswith("_")} <= {"airflow_provider_imagen", "airflow"} | set(
        sys.stdlib_module_names
    )


def test_the_commands_that_every_airflow_command_reads_load_nothing_heavy():
    before = loaded("import airflow.cli.cli_config")
    added = loaded("import airflow.cli.cli_config, airflow_provider_imagen.airflow_commands as c; c.get_commands()")

    assert top_level_packages(added - before) & HEAVY == set()


def test_defining_a_task_loads_nothing_heavy(airflow):
    statements = (
        "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator",
        "ImagenGenerateOperator(task_id='t', prompt='a red fox', output_path='file:///tmp/x', max_usd=1)",
    )

    assert top_level_packages(loaded(_AIRFLOW, *statements) - airflow) & HEAVY == set()


def test_preloading_leaves_a_task_none_of_our_modules_to_import(tmp_path):
    preload = "import airflow_provider_imagen.preload"
    late = loaded(
        preload,
        "import io, os",
        'os.environ[\'AIRFLOW_CONN_IMAGEN_DEFAULT\'] = \'{"conn_type": "imagen", "password": "k"}\'',
        "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator",
        f"task = ImagenGenerateOperator(task_id='t', prompt='a red fox', output_path={str(tmp_path)!r})",
        "from airflow_provider_imagen.operators.execution import TaskExecution",
        "execution = TaskExecution(task, {}, is_killed=lambda: False)",
        "execution._arguments.plan(); execution._open_folder(); execution._hook.get_downloader()",
        "from PIL import Image",
        "Image.new('RGB', (1, 1)).save(file := io.BytesIO(), 'PNG')",
        "from airflow_provider_imagen.storage.inspect_image import inspect_image",
        "inspect_image(file.getvalue())",
    ) - loaded(preload)

    assert not {name for name in late if name.partition(".")[0] in HEAVY | {"airflow_provider_imagen"}}


def test_the_sandbox_and_the_fixtures_are_light_until_they_are_used():
    before = loaded("import pytest")
    for module in ("airflow_provider_imagen.testing", "airflow_provider_imagen.sandbox"):
        added = top_level_packages(loaded("import pytest", f"import {module}") - before)

        assert added & (HEAVY | {"airflow"}) == set(), module


@pytest.mark.parametrize("package", ["api.client", "download.downloader", "cli", "sandbox.app", "storage.save_image"])
def test_modules_independent_of_airflow_do_not_import_it(package):
    assert "airflow" not in top_level_packages(loaded(f"import airflow_provider_imagen.{package}"))


def test_only_the_sandbox_and_the_gallery_load_the_web_framework():
    modules = ("api.client", "download.downloader", "storage.save_image", "run.runner", "run.plan")
    added = top_level_packages(loaded(*(f"import airflow_provider_imagen.{module}" for module in modules)))

    assert added & {"starlette", "fastapi", "uvicorn"} == set()


def test_the_client_shares_no_code_with_the_server_it_is_tested_against():
    client = {"airflow_provider_imagen.api.client", "airflow_provider_imagen.catalogue.request_builder"}
    of_client = {name for name in loaded(*(f"import {name}" for name in client)) if "imagen" in name}
    of_sandbox = {name for name in loaded("import airflow_provider_imagen.sandbox.app") if "imagen" in name}

    assert of_client & of_sandbox == {"airflow_provider_imagen"}


def test_there_are_no_import_cycles_not_even_for_types() -> None:
    package = Path(airflow_provider_imagen.__file__).parent
    paths = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = {(node.module or "", alias.name) for node in imports for alias in node.names}
        targets = {f"{parent}.{name}" if f"{parent}.{name}" in paths else parent for parent, name in named}
        graph[module] = targets & paths.keys() - {module}
    assert sum(map(len, graph.values())) > 300
    TopologicalSorter(graph).prepare()  # raises CycleError
