"""What the log of a task says: each image, each failure once, and the totals of every attempt."""

from __future__ import annotations

import json
import re
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_imagen._compat import HAS_RETRY_POLICY
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


class Logged:
    """Run one operator in a DAG of its own, and keep its log."""

    def __init__(self, run_dag: Callable[..., Any], recorded: Callable[..., Any], capfd: Any, caplog: Any) -> None:
        self._run_dag = run_dag
        self._recorded = recorded
        self._capfd = capfd  # has what Airflow's own loggers print
        self._caplog = caplog  # has what the standard library's loggers print
        self.errors: list[BaseException] = []
        self.text = ""

    def __call__(self, **arguments: Any) -> str:
        """Return the final state of the task."""
        self.errors = []
        with DAG(f"logged_{id(self.errors)}", schedule=None) as dag:
            self._recorded(task_id="paint", errors=self.errors, retry_delay=timedelta(0), **arguments)
        self._capfd.readouterr()
        self._caplog.clear()
        with self._caplog.at_level("INFO"):
            state = str(self._run_dag(dag).get_task_instance("paint").state)
        self.text = self._capfd.readouterr().out
        return state

    @property
    def lines(self) -> list[str]:
        """The first line of each message, of this package's loggers only."""
        return re.findall(
            r"^\S+ \[\w+ *\] (.*?)(?: +\[(?:airflow_provider_imagen|airflow\.task).*)$", self.text, re.MULTILINE
        )

    def starting_with(self, start: str) -> list[str]:
        return [line for line in (*self._caplog.messages, *self.lines) if line.startswith(start)]


@pytest.fixture
def logged(run_dag: Callable[..., Any], recorded: Callable[..., Any], capfd: Any, caplog: Any) -> Logged:
    return Logged(run_dag, recorded, capfd, caplog)


def rejects(prompt: str) -> Fault:
    return Fault("status", prompt=prompt, status=400, message="No such colour.", times=None)


def test_each_image_is_logged_with_its_name_its_price_and_its_file(logged: Logged, tmp_path: Path) -> None:
    prompts = [{"prompt": "A fox", "name": "fox"}, "A heron,\nwading in the mist " * 9]
    assert logged(prompt=prompts, output_path=str(tmp_path), concurrency=1) == "success"

    first, second = logged.starting_with("Image ")
    stored = sorted(path.name for path in tmp_path.glob("*.png"))
    assert first.startswith("Image 1 of 2: fox (prompt 0, image 0, 128x128, ")
    assert first.endswith(f" s, $0.042) → {next(name for name in stored if 'fox' in name)}")
    assert second.startswith("Image 2 of 2: A heron, wading in the mist A heron, wading in the mist A h… (prompt 1, ")
    assert second.rpartition(" → ")[2] in stored


def test_an_image_that_is_only_a_url_is_logged_as_not_stored(logged: Logged) -> None:
    logged(prompt="A fox")
    (line,) = logged.starting_with("Image ")
    assert line.endswith(" s, $0.042) → not stored")


def test_the_totals_read_like_a_receipt(logged: Logged, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(rejects("heron"))
    for on_failure, state in (("fail", "failed"), ("accept", "success")):
        prompts = ["A fox", "A heron", "A stork"]
        assert logged(prompt=prompts, on_failure=on_failure, output_path=str(tmp_path)) == state

        (line,) = logged.starting_with("Totals: ")
        assert line.startswith(f"Totals: 2 of 3 images made, 1 failed, $0.084 spent, stored in {tmp_path}, ")


def test_a_retry_says_what_it_reused(logged: Logged, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("status", prompt="heron", status=503, retry_after=0, times=6))
    assert logged(prompt=["A fox", "A heron"], output_path=str(tmp_path), retries=1) == "success"

    first, second = logged.starting_with("Totals: ")
    assert first.startswith("Totals: 1 of 2 images made, 1 failed, $0.042 spent, ")
    assert second.startswith("Totals: 2 of 2 images made (1 reused), $0.084 spent, ")


@pytest.mark.parametrize(
    ("arguments", "totals"),
    [
        ({"prompt": []}, "no images, $0.00 spent"),
        ({"prompt": "A fox", "num_images": 99}, "no images, $0.00 spent"),
        ({"prompt": "A fox", "output_path": "/proc/nowhere"}, "no images, $0.00 spent"),
        ({"prompt": ["A fox", "A heron"], "max_usd": 0.05}, "0 of 2 images made, 2 not sent, $0.00 spent"),
        (
            {"prompt": "A fox", "execution_timeout": timedelta(seconds=1)},
            "0 of 1 images made, 1 not sent, $0.00 spent, up to $0.052 more in doubt",
        ),
    ],
)
def test_every_attempt_ends_with_one_line_of_totals(
    logged: Logged, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], totals: str
) -> None:
    if "execution_timeout" in arguments:
        monkeypatch.setenv("AIRFLOW__IMAGEN__GRACE_SECONDS", "0.5")
        sandbox.add_fault(Fault("slow", seconds=5))

    assert logged(**arguments) in ("failed", "skipped")

    (line,) = logged.starting_with("Totals: ")
    assert line.startswith(f"Totals: {totals}, ")
    assert logged.lines[-1] == line


def test_an_accepted_failure_is_logged_once(logged: Logged, sandbox: Sandbox) -> None:
    sandbox.add_fault(rejects("heron"))
    assert logged(prompt=["A fox", "A heron"], on_failure="accept") == "success"

    assert logged.text.count("No such colour.") == 1
    assert (
        "1 of 2 items lacks images, which on_failure or on_filtered accepts:\n[1] A heron: 0 of 1 made;" in logged.text
    )


@pytest.mark.parametrize("prompt", [["A fox", "A heron"], "A heron"])
def test_a_failure_is_logged_once_namely_as_the_error_of_the_task(
    logged: Logged, sandbox: Sandbox, prompt: list[str] | str
) -> None:
    sandbox.add_fault(rejects("heron"))
    assert logged(prompt=prompt) == "failed"

    assert str(logged.errors[0]).count("No such colour.") == 1
    assert logged.text.count("No such colour.") == 1


def test_an_error_that_ends_the_task_early_is_logged_once(
    logged: Logged, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "imagen", "host": sandbox.url, "password": "0" * 32}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(connection))
    logged(prompt=[f"prompt {number}" for number in range(9)])

    assert logged.text.count(str(logged.errors[0])) == 1


@pytest.mark.skipif(not HAS_RETRY_POLICY, reason="before Airflow 3.3, the error is the argument of another")
@pytest.mark.parametrize("arguments", [{"prompt": ["A fox", "A heron"]}, {"prompt": "A heron"}, {"prompt": 7}])
def test_the_stack_of_an_error_is_only_the_call_of_the_operator(
    logged: Logged, sandbox: Sandbox, arguments: dict[str, Any]
) -> None:
    sandbox.add_fault(rejects("heron"))
    logged(**arguments)

    (error,) = logged.errors
    assert error.__cause__ is None
    assert error.__suppress_context__
    ours = [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if "/airflow_provider_imagen/" in frame.filename
    ]
    assert set(ours) <= {"execute", "run"}


def test_an_empty_list_explains_itself(logged: Logged) -> None:
    from airflow_provider_imagen.operators.execution import EMPTY_PROMPT

    assert logged(prompt=[]) == "skipped"
    for part in ("prompt is an empty list", "upstream task", "trigger_rule", "raise an error"):
        assert part in EMPTY_PROMPT
    assert str(logged.errors[0]) == EMPTY_PROMPT
