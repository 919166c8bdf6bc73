"""A task that can be killed at any moment and retried."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import airflow_provider_imagen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow_provider_imagen.sandbox import Charge, Sandbox

KILLED = -signal.SIGKILL

OWN_OPTIONS = ("old_airflow", "segment_bytes", "grace_seconds", "publish_interval_seconds")
"""What ``paint`` takes besides arguments of the operator, for the process of a try."""


class Nursery:
    """
    The process in ``nursery.py``, seen from the tests.

    :param home: folder for Airflow's database and the output of the processes
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._orders = 0
        self._log = open(home / "log", "wb")  # noqa: SIM115 - open as long as the process runs
        package_parent = Path(airflow_provider_imagen.__file__).parents[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **environment,
                "PYTHONPATH": str(package_parent),
                "AIRFLOW_HOME": str(home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(home),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
                "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            },
        )
        self._answer()

    def fork(self, order: dict[str, Any]) -> Fork:
        """Start a process that follows an order."""
        self._orders += 1
        path = self._home / f"answer-{self._orders}.json"
        pid = self._ask({**order, "answer": str(path)})["pid"]
        return Fork(self, pid, path)

    def wait(self, pid: int) -> int:
        """Wait for a process to end and return its exit status; negative if it was killed."""
        return int(self._ask({"do": "wait", "pid": pid})["status"])

    def close(self) -> None:
        """End the process and its children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()
        self._log.close()

    def tail(self) -> str:
        """Return the end of the processes' output."""
        return (self._home / "log").read_text(errors="replace")[-6000:]

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.tail()
        reply: dict[str, Any] = json.loads(line)
        return reply


def wait_until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait until a condition is true."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "It never came to what the test waits for"
        time.sleep(0.005)


@dataclass(frozen=True)
class Fork:
    """A process that follows an order."""

    nursery: Nursery
    pid: int
    answer: Path

    def kill(self) -> None:
        """Kill it and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.nursery.wait(self.pid) == KILLED

    def result(self) -> dict[str, Any]:
        """Wait for it to succeed and return its result."""
        assert self.nursery.wait(self.pid) == 0, self.nursery.tail()
        result: dict[str, Any] = json.loads(self.answer.read_text())
        return result


@dataclass
class Painting:
    """
    One task instance of a DAG, from its first attempt to its last.

    :param arguments: of the operator; may be changed between attempts, as an author changes a DAG file
    :param order: the order that every process gets
    :param tries: all attempts so far, including those of a mapped task's siblings; the first starts the DAG run
    """

    nursery: Nursery
    sandbox: Sandbox
    folder: Path
    arguments: dict[str, Any]
    order: dict[str, Any]
    tries: list[Fork] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def start(self, kill: dict[str, Any] | None = None) -> Fork:
        """Start the next attempt in its own process."""
        self.tries.append(self._fork("attempt", kill=kill, is_first=not self.tries))
        return self.tries[-1]

    def finish(self, fork: Fork | None = None) -> dict[str, Any]:
        """Run the next attempt to its end, or wait for a running one; return how it ended."""
        self.last = (fork or self.start()).result()
        return self.last

    def die_when(self, condition: Callable[[], object]) -> None:
        """Run the next attempt, and kill it from outside once a condition is true."""
        fork = self.start()
        wait_until(condition)
        fork.kill()

    def die(self, when: str, what: str, nth: int = 1) -> None:
        """Run the next attempt up to the moment at which it is killed."""
        assert self.dies(when, what, nth), f"It lived past {when} {what}: {self.nursery.tail()}"

    def dies(self, when: str, what: str, nth: int = 1) -> bool:
        """Run the next attempt up to the moment at which it is killed; return whether that moment came."""
        fork = self.start({"when": when, "what": what, "nth": nth})
        return self.nursery.wait(fork.pid) == KILLED

    def clear(self) -> None:
        """Clear the task, as a user does."""
        self._fork("clear").result()

    def look(self) -> dict[str, Any]:
        """Return what the database holds."""
        return self._fork("look").result()

    def reconcile(self) -> dict[str, Any]:
        """Reconcile requests in doubt on the command line."""
        return self._fork("reconcile").result()

    def of(self, map_index: int) -> Painting:
        """Return another instance of a mapped task in the same run."""
        order = {**self.order, "map_index": map_index}
        return Painting(self.nursery, self.sandbox, self.folder, self.arguments, order, self.tries)

    def _fork(self, deed: str, **more: Any) -> Fork:
        return self.nursery.fork({**self.order, "do": deed, "arguments": self.arguments, **more})

    # --- the outcome --------------------------------------------------------------------------------------------------

    @property
    def images(self) -> list[dict[str, Any]]:
        """The image records, as the last attempt reported them."""
        images: list[dict[str, Any]] = self.last["xcoms"]["images"]
        return images

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, as the last attempt reported it."""
        summary: dict[str, Any] = self.last["xcoms"]["summary"]
        return summary

    def charge(self, prompt: str) -> Charge:
        """Return the only charge for a prompt."""
        (charge,) = [charge for charge in self.sandbox.ledger() if charge.prompt == prompt]
        return charge

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""
        wait_until(condition)

    def was_seen(self, prompt: str) -> bool:
        """Return whether a request for a prompt has reached the API."""
        return prompt in [request.json["prompt"] for request in self.sandbox.seen("/v1/images/generations")]

    def bought(self) -> Counter[str]:
        """Count the charges by prompt."""
        return Counter(charge.prompt for charge in self.sandbox.ledger())

    def manifest(self) -> list[dict[str, Any]]:
        """Return the lines of the manifest."""
        return [json.loads(line) for line in (self.folder / "metadata.jsonl").read_text().splitlines()]

    def failure_lines(self) -> list[dict[str, Any]]:
        """Return the lines about failed items."""
        (path,) = (self.folder / ".imagen" / "failures").iterdir()
        return [json.loads(line) for line in path.read_text().splitlines()]

    def pictures(self) -> list[Path]:
        """List the images on disk."""
        return sorted(self.folder.rglob("*.png"))

    def assert_whole(self, prompts: Sequence[str]) -> None:
        """
        Assert that the task succeeded: every prompt paid for once, every image complete, every cent counted.

        :param prompts: one per expected image, in order
        """
        assert self.last["state"] == "success", self.last["error"]
        assert self.bought() == Counter(prompts)
        assert self.summary["usd_lost"] == 0
        assert [image["prompt"] for image in self.images] == list(prompts)
        self.assert_tidy()
        assert {Path(image["path"]) for image in self.images} == set(self.pictures())
        self.assert_forgotten()

    def assert_forgotten(self) -> None:
        """Assert that no journal is left, wherever it was kept; if money is in doubt, assert that it was kept."""
        files = list(self.folder.rglob("journal/*/*"))
        if self.summary["in_doubt"]:
            assert self.last["journal"] or files
        else:
            assert self.last["journal"] == []
            assert not files

    def assert_lost(self, *, lost: str, others: Sequence[str]) -> None:
        """
        Assert that one response was billed and lost, that the error names what is needed to claim the money back, that
        the prompt was not paid for again, and that the other images are safe.
        """
        charge = self.charge(lost)
        assert self.last["state"] == "failed"
        (failure,) = self.last["error"]["failures"] or [self.last["error"]]
        assert failure["type"] == "ChargedButLostError"
        assert failure["inference_id"] == charge.inference_id
        assert charge.inference_id in self.last["error"]["message"]
        assert failure["usd"] == float(charge.usd)
        assert self.summary["usd_lost"] == float(charge.usd)
        assert self.bought() == Counter([lost, *others])
        assert sorted(image["prompt"] for image in self.images) == sorted(others)
        self.assert_tidy()

    def assert_tidy(self) -> None:
        """Assert that files on disk are complete and listed, nothing half-written is left, and the totals are right."""
        for path in self.pictures():
            with Image.open(path) as opened:
                opened.load()
        for image in self.images:
            assert hashlib.sha256(Path(image["path"]).read_bytes()).hexdigest() == image["sha256"]
        assert not [path.name for path in self.folder.rglob("*.part")]
        listed = {self.folder / line["file_name"] for line in self.manifest()}
        assert {Path(image["path"]) for image in self.images} <= listed <= set(self.pictures())
        billed = float(sum(charge.usd for charge in self.sandbox.ledger()))
        assert self.summary["usd_spent"] == pytest.approx(billed)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def paint(nursery: Nursery, sandbox: Sandbox, tmp_path: Path) -> Callable[..., Painting]:
    """Return a function that creates a DAG with one operator whose task has not run yet."""
    folder = tmp_path / "pictures"

    def make(*, dag: str = "painting", mapped: bool = False, read_timeout: float = 2.5, **options: Any) -> Painting:
        own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
        arguments = {"output_path": str(folder), "concurrency": 1, "lost_answer_patience_seconds": 0.5, **options}
        order = {
            "dag_id": f"{dag}_{tmp_path.name}",
            "map_index": 0 if mapped else -1,
            "mapped": mapped,
            "connection": {
                "conn_type": "imagen",
                "host": sandbox.url,
                "password": sandbox.api_key,
                "extra": {
                    "read_timeout": read_timeout
                },  # also how long a request of a killed attempt may still be in flight
            },
            **own,
        }
        return Painting(nursery, sandbox, folder, arguments, order)

    return make
