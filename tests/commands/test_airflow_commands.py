"""``airflow imagen …``, run as users do, because Airflow builds its parser once per process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from airflow_provider_imagen.airflow_commands import get_commands

pytestmark = pytest.mark.skipif(
    Version(version("apache-airflow")) < Version("3.2"), reason="providers have commands since Airflow 3.2"
)
DAG = """
print("printed by the DAG file")
from airflow.sdk import DAG
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
with DAG("d"):
    ImagenGenerateOperator(task_id="a", prompt="x", model="flux/schnell")
"""


def airflow(home, *argv):
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *argv],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"AIRFLOW_HOME": str(home)},
    )
    # On Python 3.14, every command of Airflow 3.3.2 prints warnings about Airflow itself.
    done.stdout = "".join(line for line in done.stdout.splitlines(keepends=True) if "[py.warnings]" not in line)
    return done


def test_the_group_has_every_command_that_can_run_inside_airflow():
    (group,) = get_commands()

    assert group.name == "imagen"
    assert {command.name for command in group.subcommands} == {
        *("bill", "check", "examples", "models", "reconcile", "replay", "sandbox", "whois"),
    }


def test_airflow_shows_the_commands_and_their_arguments(tmp_path):
    shown = airflow(tmp_path, "imagen", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "check the API key, the balance and the models your DAGs use" in " ".join(shown.stdout.split())
    shown = airflow(tmp_path, "imagen", "sandbox", "--help")
    assert "--requests-per-minute" in shown.stdout


def test_a_command_prints_only_its_result_and_airflow_exits_with_its_status(tmp_path):
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "dag.py").write_text(DAG)
    done = airflow(tmp_path, "imagen", "check", str(dags), "--imagen-conn-id", "imagen_nowhere", "--json")

    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["connection"]["ok"] is False
    assert "flux/schnell" in [model["model"] for model in report["models"]]


def test_an_example_can_be_redirected_into_a_file(tmp_path):
    done = airflow(tmp_path, "imagen", "examples", "imagen_quickstart")

    assert done.returncode == 0, done.stderr
    source = Path(__file__).parents[2] / "example_dags" / "imagen_quickstart.py"
    assert done.stdout == source.read_text(encoding="utf-8")
