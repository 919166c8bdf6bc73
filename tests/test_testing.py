"""The public fixtures, in a separate pytest run as users would use them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from doc_snippets import write_shown_files

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # each starts pytest, and most of them Airflow


def run_tests(tmp_path, code="", options=(), environment=None):
    """Run tests in a new project, without a configured Airflow unless ``environment`` has one."""
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    home.mkdir(exist_ok=True)
    if code:
        (project / "test_mine.py").write_text(textwrap.dedent(code), encoding="utf-8")
    else:
        write_shown_files(ROOT / "docs" / "guides" / "test-your-dags.md", project)
    plugins = ("airflow_provider_imagen.testing", "xdist.plugin", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(word for name in plugins for word in ("-p", name)), *options],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=project,
        env={name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), "HOME": str(home)}
        | (environment or {}),
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


def test_the_original_connection_is_restored(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import os

        def test_one(imagen_connection):
            assert os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"] != "mine"

        def test_two():
            assert os.environ["AIRFLOW_CONN_IMAGEN_DEFAULT"] == "mine"
        """,
        environment={"AIRFLOW_CONN_IMAGEN_DEFAULT": "mine"},
    )

    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_airflow_reads_the_connection(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import os

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


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_the_shown_tests_of_a_dag_pass_and_leave_the_home_alone(tmp_path, options):
    done = run_tests(tmp_path, options=options)

    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "home").iterdir()) == []


def test_a_run_has_what_its_tasks_returned_pushed_and_raised(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import sys
        from datetime import timedelta, timezone, datetime


        def test_a_run(run_dag):  # imports Airflow after run_dag has been set up
            from airflow.sdk import DAG, Param, TriggerRule, task

            with DAG("everything", schedule=None, params={"animal": Param("fox", type="string")}) as dag:

                @task
                def give(params, ti, ds):
                    ti.xcom_push(key="date", value=ds)
                    return [params["animal"], 1]

                @task(retries=2, retry_delay=timedelta(hours=1))
                def double(value, ti):
                    if ti.try_number == 1:
                        raise RuntimeError("only once")
                    return value * 2

                @task(retries=1, retry_delay=timedelta(hours=1))
                def fail_at_times(value):
                    if value == 1:
                        raise ValueError("one is not allowed")

                @task(retries=1, retry_delay=timedelta(hours=1))
                def fail(value):
                    raise KeyError(value)

                @task
                def never():
                    pass

                given = give()
                double.expand(value=given) >> never()
                fail_at_times.expand(value=given) >> fail("a") >> never.override(task_id="never_too")()
                fail.override(task_id="fail_too", trigger_rule=TriggerRule.ALL_DONE)("b")

            run = run_dag(dag, conf={"animal": "heron"}, logical_date=datetime(2026, 2, 3, tzinfo=timezone.utc))

            assert run.state == run.dag_run.state == "failed"
            assert run.xcom("give") == ["heron", 1]
            assert run.xcom("give", "date") == "2026-02-03"
            assert [run.xcom("double", map_index=index) for index in range(2)] == ["heronheron", 2]
            assert run.xcom("give", "unknown") is run.xcom("unknown") is None
            assert {name: repr(error) for name, error in run.errors.items()} == {
                "fail_at_times[1]": "ValueError('one is not allowed')",
                "fail_too": "KeyError('b')",
            }
            assert run.dag_run.get_task_instance("never_too").state == "upstream_failed"

        def test_a_second_run_of_a_dag(run_dag):
            from airflow.sdk import DAG, task

            with DAG("again", schedule="@daily", start_date=datetime(2026, 1, 1)) as dag:
                task(lambda ti: ti.run_id, task_id="one")()
            first, second = run_dag(dag), run_dag(dag)

            assert first.state == second.state == "success"
            assert first.errors == second.errors == {}
            assert first.xcom("one") != second.xcom("one")
            assert dag.get_task("one").retry_delay == timedelta(minutes=5)
        """,
    )

    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_output_of_a_failed_test_explains_why_the_task_failed(tmp_path):
    done = run_tests(
        tmp_path,
        """
        from airflow.sdk import dag, task

        from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

        @dag(schedule=None)
        def broken():
            @task
            def divide():
                return 1 / 0

            divide() >> ImagenGenerateOperator(task_id="later", prompt="A fox")

        @dag(schedule=None)
        def wrong():
            ImagenGenerateOperator(task_id="paint", prompt="A fox", num_images=7)

        def test_broken(run_dag):
            assert run_dag(broken()).state == "success"

        def test_wrong(run_dag, imagen_connection):
            assert run_dag(wrong()).state == "success"
        """,
    )

    assert "2 failed" in done.stdout, done.stdout + done.stderr
    assert "\nbroken.divide failed: ZeroDivisionError: division by zero\n" in done.stdout
    assert "\n    return 1 / 0\n" in done.stdout
    assert "InvalidArgumentsError: num_images=7: a whole number from 1 to 4 is allowed\n" in done.stdout


def test_each_test_starts_with_an_empty_database(tmp_path):
    done = run_tests(
        tmp_path,
        """
        import pytest
        from airflow.models import DagRun, Variable
        from airflow.sdk import DAG, task
        from airflow.utils.session import create_session

        with DAG("reads_a_variable", schedule=None) as dag:
            @task
            def read():
                from airflow.sdk import Variable

                return Variable.get("animal", default=None)

            read()

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(run_dag, turn):
            with create_session() as session:
                assert session.query(DagRun).count() == 0
            assert run_dag(dag).xcom("read") is None
            Variable.set("animal", "fox")
            assert run_dag(dag).xcom("read") == "fox"
        """,
    )

    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("when", ["collected", "run"])
def test_a_configured_airflow_is_left_alone_and_in_effect_again_after_each_test(tmp_path, when):
    airflow = tmp_path / "home" / "airflow"
    (airflow / "dags").mkdir(parents=True)
    (airflow / "dags" / "broken.py").write_text("raise SystemError('parsed')")
    (airflow / "airflow.cfg").write_text(
        f"[core]\nparallelism = 7\n[database]\nsql_alchemy_conn = sqlite:///{airflow}/mine.db\n"
    )
    (airflow / "mine.db").write_bytes(b"not to be opened")
    before = {path: path.stat().st_mtime_ns for path in sorted(airflow.rglob("*"))}
    done = run_tests(
        tmp_path,
        f"""
        import os

        if "{when}" == "collected":
            import airflow.settings

        environment = dict(os.environ)

        def test_before():
            assert "AIRFLOW_HOME" not in os.environ

        def test_a_run(run_dag):
            from airflow.configuration import conf
            from airflow.sdk import DAG, task

            with DAG("mine", schedule=None) as dag:
                task(lambda: conf.getint("core", "parallelism"), task_id="read")()
            run = run_dag(dag)
            assert (run.state, run.xcom("read")) == ("success", 7)

        def test_after():
            from airflow import settings

            assert str(settings.engine.url) == settings.SQL_ALCHEMY_CONN == "sqlite:///{airflow}/mine.db"
            changed = {{name for name, _ in environment.items() ^ os.environ.items()}}
            assert [name for name in changed if not name.startswith(("AIRFLOW_CTX_", "PYTEST_"))] == []
        """,
    )

    assert "3 passed" in done.stdout, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in sorted(airflow.rglob("*"))} == before


def test_a_home_named_by_the_environment_keeps_its_log_folder(tmp_path):
    done = run_tests(
        tmp_path,
        """
        def test_it():
            from airflow.configuration import conf

            assert conf.get("logging", "base_log_folder").endswith("/project/mine/logs")
        """,
        environment={"AIRFLOW_HOME": str(tmp_path / "project" / "mine")},
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_retry_does_not_wait_for_what_the_api_or_the_task_asks_for(tmp_path):
    done = run_tests(
        tmp_path,
        """
        from datetime import timedelta

        import pytest
        from airflow.sdk import DAG

        from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
        from airflow_provider_imagen.sandbox import Fault

        @pytest.mark.parametrize("is_mapped", [False, True])
        def test_it(run_dag, imagen_sandbox, imagen_connection, tmp_path, is_mapped):
            imagen_sandbox.add_fault(Fault("status", status=429, retry_after=3600))
            arguments = {"retries": 1, "retry_delay": timedelta(hours=1), "output_path": str(tmp_path)}
            with DAG("late", schedule=None) as dag:
                if is_mapped:
                    ImagenGenerateOperator.partial(task_id="paint", **arguments).expand(prompt=["a fox"])
                else:
                    ImagenGenerateOperator(task_id="paint", prompt="a fox", **arguments)
            run = run_dag(dag)

            assert run.state == "success"
            assert run.dag_run.get_task_instances()[0].try_number == 2
            assert len(imagen_sandbox.ledger()) == 1
        """,
    )

    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_what_a_run_cannot_do_is_said_in_a_sentence(tmp_path):
    done = run_tests(
        tmp_path,
        """
        from datetime import datetime, timezone

        import pytest

        def test_it(run_dag):
            from airflow.sdk import DAG, task

            with DAG("twice", schedule=None) as dag:
                task(lambda: 1, task_id="one")()
            with pytest.raises(ValueError, match="logical_date=.*: a datetime with a time zone is allowed"):
                run_dag(dag, logical_date=datetime(2026, 1, 1))
            first, second = (run_dag(dag, logical_date=datetime(2026, 1, 1, tzinfo=timezone.utc)) for _ in range(2))

            assert second.xcom("one") == 1
            with pytest.raises(LookupError, match="A later run with the same logical date has replaced the run "):
                first.xcom("one")
        """,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr
