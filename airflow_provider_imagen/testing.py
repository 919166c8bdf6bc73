"""
Pytest fixtures for testing your own DAGs against the sandbox, without an API key or costs.

Installing the package registers them with pytest. A test of a DAG looks like this::

    from airflow_provider_imagen.sandbox import Fault


    def test_my_dag_generates_one_image(imagen_sandbox, imagen_connection):
        from my_dags.postcards import dag

        assert dag.test().state == "success"

        (charge,) = imagen_sandbox.ledger()
        assert charge.images == 1


    def test_my_dag_pays_once_despite_a_connection_reset(imagen_sandbox, imagen_connection):
        from my_dags.postcards import dag

        imagen_sandbox.add_fault(Fault("reset", billed=True))
        dag.test()

        assert len(imagen_sandbox.ledger()) == 1

Every pytest run loads this module wherever the package is installed, so it imports nothing heavy.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_imagen.sandbox import Sandbox


@pytest.fixture(scope="session")
def _imagen_sandbox_server() -> Iterator[Sandbox]:
    from airflow_provider_imagen.sandbox import Sandbox

    with Sandbox(picture_scale=0.125) as sandbox:
        yield sandbox


@pytest.fixture
def imagen_sandbox(_imagen_sandbox_server: Sandbox) -> Sandbox:
    """
    Return a running sandbox, reset for this test.

    One server runs for the whole session, started by the first test that uses it. Images have an eighth of their usual
    width and height (128 x 128 for 1:1); ``imagen_sandbox.configure(picture_scale=1)`` restores the full size for the
    current test. ::

        def test_a_rejected_prompt_costs_nothing(imagen_sandbox, imagen_connection):
            imagen_sandbox.add_fault(Fault("upstream_4xx", times=None))
            run = my_dag.test()
            assert run.state == "failed"
            assert imagen_sandbox.ledger() == []
    """
    _imagen_sandbox_server.reset()
    return _imagen_sandbox_server


@pytest.fixture
def imagen_connection(imagen_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    Point the connection ``imagen_default`` at the sandbox for one test, and return its id.

    Sets the environment variable ``AIRFLOW_CONN_IMAGEN_DEFAULT``, which takes precedence over Airflow's database. ::

        def test_the_hook_talks_to_the_sandbox(imagen_connection):
            ok, message = ImagenHook(imagen_conn_id=imagen_connection).test_connection()
            assert ok, message
    """
    values = {"conn_type": "imagen", "host": imagen_sandbox.url, "password": imagen_sandbox.api_key}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(values))
    return "imagen_default"
