"""Each object store once per session, and the operator storing to it through a real Airflow."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from object_store_servers import BUCKET, KINDS, Gcs, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.sandbox import Sandbox


WANTED = os.environ.get("IMAGEN_STORE")
"""Only this store; ``None`` for one after the other."""


@pytest.fixture(
    scope="session", params=[kind for kind in KINDS if WANTED in (None, kind.name)], ids=lambda kind: kind.name
)
def store_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    found = request.param(tmp_path_factory.mktemp("stores") / request.param.name)
    found.start()
    yield found
    found.stop()


class Place:
    """A fresh folder in a store, and a fresh connection: Airflow caches connections for a process's lifetime."""

    _number = 0

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        Place._number += 1
        self.store = store
        self.folder = f"out-{Place._number}"
        self._monkeypatch = monkeypatch
        self.url = self.at(self.connect(), f"{BUCKET}/{self.folder}")

    def connect(self, *, good: bool = True) -> str:
        """Create a connection and return its id."""
        name = f"{self.store.name.replace('-', '_')}_{Place._number}{'' if good else '_wrong'}"
        values = json.dumps(self.store.connection(good=good))
        self._monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", values)
        return name

    def at(self, connection: str, path: str) -> str:
        return f"{self.store.scheme}://{connection}@{path}"

    def list(self) -> list[str]:
        """Return the names in the folder, relative to it."""
        return [key.removeprefix(f"{self.folder}/") for key in self.store.keys(f"{self.folder}/")]

    def pictures(self) -> list[str]:
        return [key for key in self.list() if key.endswith(".png") and ".imagen/" not in key]

    def read(self, name: str) -> tuple[bytes, str]:
        return self.store.read(f"{self.folder}/{name}")

    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read("metadata.jsonl")[0].splitlines()]


@pytest.fixture
def place(store_server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if isinstance(store_server, Gcs):  # gcsfs spends a minute asking non-Google servers for the bucket's type
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield Place(store_server, monkeypatch)
    store_server.gate.refuses = "nothing"
    store_server.gate.before_the_second_half = None


class Painting:
    """Run the operator in a fresh DAG and read its results."""

    def __init__(self, run_dag: Callable[..., Any]) -> None:
        self._run_dag = run_dag
        self._number = 0
        self.errors: list[BaseException] = []

    def __call__(self, *, operator: Any = None, on_retry: Callable[[], None] = lambda: None, **arguments: Any) -> str:
        from airflow.sdk import DAG

        from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

        self._number += 1
        self.errors = []

        def retried(context: Any) -> None:
            self.errors.append(context["exception"])
            on_retry()

        with DAG(f"stores_{id(self)}_{self._number}", schedule=None) as dag:
            (operator or ImagenGenerateOperator)(
                task_id="paint",
                retry_delay=timedelta(0),
                on_retry_callback=retried,
                on_failure_callback=lambda context: self.errors.append(context["exception"]),
                **arguments,
            )
        self.run = self._run_dag(dag)
        return str(self.run.state)

    def pull(self, key: str) -> Any:
        return self.run.get_task_instance("paint").xcom_pull(task_ids="paint", key=key)

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.pull("images")

    @property
    def summary(self) -> dict[str, Any]:
        return self.pull("summary")


@pytest.fixture
def paint(run_dag: Callable[..., Any], imagen_connection: str, sandbox: Sandbox) -> Painting:
    sandbox.configure(picture_scale=0.25)  # large enough to be distinguished by size
    return Painting(run_dag)
