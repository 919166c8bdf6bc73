from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal

import pytest

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.sandbox import Fault

DAG = """
from airflow.sdk import DAG
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
with DAG("d"):
    ImagenGenerateOperator(task_id="a", prompt="x", model={model!r})
"""


@pytest.fixture
def run(capsys, tmp_path):
    def run(*argv, model="flux/schnell"):
        (tmp_path / "dag.py").write_text(DAG.format(model=model))
        status = main(["check", str(tmp_path), *argv])
        shown = capsys.readouterr()
        return status, shown.out

    return run


@pytest.mark.usefixtures("imagen_connection")
def test_a_valid_key_and_available_models_pass(run, sandbox):
    status, out = run()
    assert status == 0
    assert "Balance: $100.00" in out
    assert "flux/schnell: alive (dag.py:d.a)" in out
    assert "imagen-3.0-generate-002: alive (connection imagen_default)" in out
    assert sandbox.ledger() == []
    assert sandbox.api_key not in out


@pytest.mark.usefixtures("imagen_connection")
def test_a_withdrawn_model_fails_the_check_and_names_its_replacement(run, sandbox):
    sandbox.add_fault(Fault("withdrawn", model="flux/schnell", replaced_by="flux/dev", times=None))
    status, out = run()
    assert status == 1
    assert "FAIL  flux/schnell: withdrawn" in out
    assert "use flux/dev (dag.py:d.a)" in out


@pytest.mark.usefixtures("imagen_connection")
def test_an_announced_shutdown_is_a_warning_not_a_failure(run):
    status, out = run(model="openai/gpt-image-1")
    assert status == 0
    assert "ok    openai/gpt-image-1: alive (dag.py:d.a)" in out
    assert "warn  openai/gpt-image-1: its maker retires it on 2026-10-23 (OpenAI, deprecations page, 2026-10): " in out
    assert "may fail; use openai/gpt-image-2.5-sunburst\n" in out  # on one line, for programs
    assert "but see the warnings" in out
    report = json.loads(run("--json", model="openai/gpt-image-1")[1])
    assert {model["model"]: bool(model["warning"]) for model in report["models"]}["openai/gpt-image-1"] is True


@pytest.mark.usefixtures("imagen_connection")
def test_a_typo_in_a_model_is_found(run):
    status, out = run("--json", model="flux/schnel")
    report = json.loads(out)
    assert status == 1
    assert report["ok"] is False
    (wrong,) = [model for model in report["models"] if not model["ok"]]
    assert (wrong["state"], wrong["similar"][0], wrong["places"]) == ("unknown", "flux/schnell", ["dag.py:d.a"])


@pytest.mark.usefixtures("imagen_connection")
def test_an_empty_account_fails_the_check_but_models_are_still_checked(run, sandbox):
    sandbox.configure(balance_usd=Decimal(0))
    status, out = run()
    assert status == 1
    assert "out of credits" in out
    assert "flux/schnell: alive" in out


def test_a_wrong_key_fails_the_check_without_being_shown(run, sandbox, monkeypatch):
    connection = {"conn_type": "imagen", "host": sandbox.url, "password": "0123456789abcdef" * 2}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(connection))
    status, out = run()
    assert status == 1
    assert "FAIL  connection imagen_default" in out
    assert "0123456789abcdef" not in out


def test_without_a_connection_the_models_are_checked_with_the_catalogue(run):
    status, out = run()
    assert status == 0
    assert "skip  connection imagen_default: There is no connection 'imagen_default'" in out
    assert """export AIRFLOW_CONN_IMAGEN_DEFAULT='{"conn_type": "imagen", "extra": {"sandbox": true}}'""" in out
    assert "not checked without a working connection: key, balance" in out
    assert "ok    flux/schnell: in the catalogue (dag.py:d.a)" in out
    assert "ok    imagen-3.0-generate-002: in the catalogue (default model)" in out
    assert "warn  imagen-3.0-generate-002: its maker retires it" in out
    report = json.loads(run("--json")[1])
    assert (report["connection"]["ok"], report["models_from"]) == (None, "catalogue")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [("dall-e-2", "deprecated"), ("flux/schnel", "not in the catalogue; did you mean flux/schnell")],
)
def test_a_problem_that_is_known_offline_fails_the_check_without_a_connection(run, model, sentence):
    status, out = run(model=model)
    assert status == 1
    assert f"FAIL  {model}: {sentence}" in out


def test_a_broken_dag_file_fails_the_check_without_a_connection(run, tmp_path):
    (tmp_path / "broken.py").write_text("from airflow.sdk import DAG\nimport no_such_module_anywhere\n")
    status, out = run()
    assert status == 1
    assert "FAIL  broken.py: ModuleNotFoundError" in out


def test_a_missing_connection_fails_the_check_if_it_was_asked_for(run):
    status, out = run("--imagen-conn-id", "imagen_nowhere")
    assert status == 1
    assert "FAIL  connection imagen_nowhere: There is no connection 'imagen_nowhere'" in out
    assert "export AIRFLOW_CONN_IMAGEN_NOWHERE=" in out
    assert "ok    flux/schnell: in the catalogue (dag.py:d.a)" in out


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"extra": {"sandbxo": True}}, "unknown field 'sandbxo'; did you mean 'sandbox'?"),
        ({"conn_type": "openai"}, "has the type 'openai'"),
        ({"password": ""}, "has no API key"),
    ],
)
def test_an_invalid_connection_fails_the_check_but_models_are_still_checked(run, monkeypatch, fields, problem):
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps({"conn_type": "imagen", "password": "k"} | fields))
    status, out = run()
    assert status == 1
    assert "FAIL  connection imagen_default: " in out
    assert problem in out
    assert "ok    flux/schnell: in the catalogue (dag.py:d.a)" in out


@pytest.mark.usefixtures("imagen_connection")
def test_an_api_without_model_lists_fails_the_check_and_the_catalogue_is_used(run, sandbox):
    sandbox.add_fault(Fault("status", path="/v1/models/deprecations", times=None))
    status, out = run("--json")
    report = json.loads(out)
    assert status == 1
    assert "can generate images" in report["connection"]["message"]
    assert "The API failed (500)" in report["connection"]["message"]
    assert report["models_from"] == "catalogue"
    assert {model["model"]: model["state"] for model in report["models"]}["flux/schnell"] == "catalogued"


@pytest.mark.usefixtures("imagen_connection")
def test_a_dag_file_that_cannot_be_imported_fails_the_check(run, tmp_path):
    (tmp_path / "broken.py").write_text("from airflow.sdk import DAG\nimport no_such_module_anywhere\n")
    status, out = run()
    assert status == 1
    assert "FAIL  broken.py: ModuleNotFoundError: No module named 'no_such_module_anywhere'\n" in out
    assert "ok    flux/schnell: alive (dag.py:d.a)" in out
    assert json.loads(run("--json")[1])["broken"] == [
        "broken.py: ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    ]


@pytest.mark.usefixtures("imagen_connection")
def test_values_known_only_at_run_time_are_listed_without_failing(run):
    status, out = run(model="{{ ds }}")
    assert status == 0
    assert "not checked, known only at run time: dag.py:d.a (model)" in out


def test_only_the_report_reaches_stdout(sandbox, tmp_path):
    """In its own process, because Airflow, its logs and the DAG files also print, but programs read the JSON."""
    (tmp_path / "dag.py").write_text('print("printed by the DAG file")' + DAG.format(model="flux/schnell"))
    (tmp_path / "broken.py").write_text("from airflow.sdk import DAG\nraise ValueError('broken on purpose')\n")
    connection = json.dumps({"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key})
    done = subprocess.run(
        [sys.executable, "-m", "airflow_provider_imagen.cli", "check", "--json", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"AIRFLOW_CONN_IMAGEN_DEFAULT": connection, "AIRFLOW_HOME": str(tmp_path)},
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert report["connection"]["ok"] is True
    assert report["broken"] == ["broken.py: ValueError: broken on purpose"]
    assert "printed by the DAG file" in done.stderr
    assert "Filling up the DagBag" not in done.stderr


def test_a_missing_folder_is_a_usage_error(capsys, tmp_path):
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("_airflow_database")
def test_a_connection_in_the_database_is_found(run, sandbox):
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Connection(conn_id="imagen_stored", conn_type="imagen", host=sandbox.url, password=sandbox.api_key))
    try:
        status, out = run("--imagen-conn-id", "imagen_stored")
    finally:
        with create_session() as session:
            session.query(Connection).filter_by(conn_id="imagen_stored").delete()
    assert status == 0, out
