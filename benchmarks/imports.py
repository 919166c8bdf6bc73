"""Costs of every parse and every task process: importing the operator, and parsing a DAG file full of operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.running import ROOT

if TYPE_CHECKING:
    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "Imports and parsing"
REMARK = (
    "CPU in a fresh process, on top of `airflow.sdk`; a DAG file with 200 operators, loaded as the DAG processor does."
)

_IMPORT = """
import resource, sys
import airflow.sdk
from airflow.sdk import BaseOperator, DAG, ObjectStoragePath
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
before = cpu()
import {module}
import json
print(json.dumps([(cpu() - before) * 1000, sorted({{"requests", "PIL", "uvicorn"}} & set(sys.modules))]))
"""

_PARSE = """
import json, resource, sys
from airflow.sdk import DAG
from airflow_provider_imagen._compat import get_dag_bag
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
DagBag, _ = get_dag_bag()
before = cpu()
bag = DagBag(dag_folder=sys.argv[1])
assert not bag.import_errors, bag.import_errors
(dag,) = bag.dags.values()
assert len(dag.tasks) == 200
print(json.dumps((cpu() - before) * 1000))
"""

_FILES = {
    "ours": (
        "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator as Operator",
        "Operator(task_id=f't{n}', prompt='A lighthouse', output_path='/pictures/{{ run_id }}')",
    ),
    "HttpOperator": (
        "from airflow.providers.http.operators.http import HttpOperator as Operator",
        "Operator(task_id=f't{n}', endpoint='/v1/images/generations', data='{}')",
    ),
    "EmptyOperator": (
        "from airflow.providers.standard.operators.empty import EmptyOperator as Operator",
        "Operator(task_id=f't{n}')",
    ),
}


def measure(_: Lab | None = None, *, quick: bool) -> list[Row]:
    """Return a row per operator; needs no running Airflow."""
    repeats = 1 if quick else 7
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        return [_measure(name, environment, Path(home), repeats) for name in _FILES if _is_there(name)]


def _is_there(name: str) -> bool:
    module = _FILES[name][0].split()[1]
    return find_spec(module.rpartition(".operators")[0]) is not None


def _measure(name: str, environment: dict[str, str], home: Path, repeats: int) -> Row:
    statement, call = _FILES[name]
    folder = home / name
    folder.mkdir()
    (folder / "full.py").write_text(
        f"from airflow.sdk import DAG\n{statement}\nwith DAG('full', schedule=None):\n"
        f"    for n in range(200):\n        {call}\n"
    )
    module = statement.split()[1]
    imports = [_run(_IMPORT.format(module=module), environment) for _ in range(repeats)]
    parses = [_run(_PARSE, environment, str(folder)) for _ in range(repeats)]
    return {
        "operator": name,
        "import CPU ms": median([cpu for cpu, _ in imports]),
        "loads": ", ".join(imports[0][1]) or "nothing heavy",
        "200 operators parse CPU ms": median(parses),
    }


def _run(code: str, environment: dict[str, str], *arguments: str) -> object:
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])
