"""The public fixtures, in a separate pytest run as users would use them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_tests(tmp_path, code):
    (tmp_path / "test_mine.py").write_text(textwrap.dedent(code), encoding="utf-8")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "airflow_provider_imagen.testing",
            "-p",
            "no:cacheprovider",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
    )


def test_the_sandbox_is_fresh_for_each_test_and_the_connection_points_at_it(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import json, os
        import pytest, requests
        from airflow_provider_imagen.sandbox import Fault

        urls = set()

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(imagen_sandbox, imagen_connection, turn):
            assert imagen_connection == "imagen_default"
            assert imagen_sandbox.ledger() == imagen_sandbox.seen() == []
            connection = json.loads(os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"])
            assert connection["conn_type"] == "imagen"

            def generate():
                return requests.post(
                    connection["host"] + "/v1/images/generations",
                    json={"model": "imagen-3.0-generate-002", "prompt": "x"},
                    headers={"Authorization": "Bearer " + connection["password"]},
                    timeout=10,
                ).status_code

            imagen_sandbox.add_fault(Fault("status", skip=1))
            assert [generate(), len(imagen_sandbox.ledger())] == [200, 1]
            urls.add(imagen_sandbox.url)

        def test_after(imagen_sandbox):
            assert "AIRFLOW_CONN_IMAGEN_DEFAULT" not in os.environ
            assert urls == {imagen_sandbox.url}
        """,
    )

    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_original_connection_is_restored(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", "mine")
    done = run_tests(
        tmp_path,
        """
        import os

        def test_one(imagen_connection):
            assert os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"] != "mine"

        def test_two():
            assert os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"] == "mine"
        """,
    )

    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_airflow_reads_the_connection(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import os

        os.environ["AIRFLOW_HOME"] = os.path.dirname(__file__)

        def test_it(imagen_sandbox, imagen_connection):
            from airflow.models.connection import Connection

            connection = Connection.from_json(os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"], conn_id=imagen_connection)
            assert (connection.host, connection.password) == (imagen_sandbox.url, imagen_sandbox.api_key)
        """,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_pytest_run_that_does_not_use_the_fixtures_loads_nothing_heavy(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import sys

        def test_it():
            heavy = {"airflow", "starlette", "uvicorn", "PIL", "requests", "airflow_provider_imagen.sandbox"}
            assert heavy & set(sys.modules) == set()
        """,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr
