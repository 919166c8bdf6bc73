"""Fakes for everything around a run: an API, a folder and a journal store that a test can script."""

from __future__ import annotations

import threading
import time
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from memory_store import MemoryStore

from airflow_provider_imagen.api.responses import GeneratedImage, Generation
from airflow_provider_imagen.exceptions import LostAnswerError, ModelWithdrawnError
from airflow_provider_imagen.image_record import StoredFile
from airflow_provider_imagen.journal.log import Journal, read_journal
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.ports import RunOptions
from airflow_provider_imagen.run.runner import Run
from airflow_provider_imagen.run.shared_state import Cancellation
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.image_record import ImageRecord
    from airflow_provider_imagen.run.plan import Plan
    from airflow_provider_imagen.run.results import ReceivedResponse, RunResult

Step = "Callable[[FakePorts, ImageRequest, str], Generation]"

MODEL = "imagen-3.0-generate-002"
PRICE = Decimal("0.04")
TI_KEY = TaskInstanceKey(dag_id="dag", task_id="task", run_id="run")


class FakePorts:
    """An API, its log, its CDN and a folder, all in memory; what happens to each prompt is scripted."""

    def __init__(self) -> None:
        self.stores = True
        self.clock_offset_seconds: float | None = 0.0
        self.account = "account"
        self.latency_seconds = 0.0
        self.steps: dict[str, list[Any]] = {}
        self.posts: list[tuple[str, str]] = []
        self.models: list[str] = []
        self.charges: dict[str, Decimal] = {}
        self.rows: list[dict[str, Any]] = []
        self.looks = 0
        self.log_error: Exception | None = None
        self.fetched: list[str] = []
        self.files: dict[str, bytes] = {}
        self.saved: list[tuple[int, int]] = []
        self.save_error: BaseException | None = None
        self.fetch_error: BaseException | None = None
        self.in_flight = 0
        self.most_in_flight = 0
        self.withdrawn: set[str] = set()
        self.before_post: Callable[[str], None] = lambda client_request_id: None
        self._lock = threading.Lock()

    def script(self, prompt: str, *steps: Any) -> None:
        """Script what the API does with the next POSTs of a prompt; afterwards it generates images."""
        self.steps[prompt] = list(steps)

    @property
    def billed_usd(self) -> Decimal:
        return sum(self.charges.values(), Decimal(0))

    def sent(self, prompt: str) -> int:
        return sum(name == prompt for name, _ in self.posts)

    def charge(self, client_request_id: str, usd: Decimal, *, logged: bool = True) -> None:
        with self._lock:
            self.charges[client_request_id] = usd
        if logged:
            self.log_row(client_request_id, "succeeded", usd)

    def log_row(self, client_request_id: str, status: str, usd: Decimal = Decimal(0)) -> None:
        row = {
            "client_request_id": client_request_id,
            "status": status,
            "cost": {"usd": float(usd), "credits": int(usd * 2_000_000)},
            "inference_id": f"inf-{client_request_id}",
        }
        with self._lock:
            self.rows.append(row)

    def generate(self, request: ImageRequest, client_request_id: str, *, before_send: Callable[[], None]) -> Generation:
        prompt = request.body.get("prompt", "")
        before_send()
        self.before_post(client_request_id)
        with self._lock:
            self.posts.append((prompt, client_request_id))
            self.models.append(request.body["model"])
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            steps = self.steps.get(prompt)
            step = steps.pop(0) if steps else pictures()
        try:
            if request.body["model"] in self.withdrawn:
                raise ModelWithdrawnError("gone", status=404, replaced_by="x", model=request.body["model"])
            if self.latency_seconds:
                time.sleep(self.latency_seconds)
            return step(self, request, client_request_id)
        finally:
            with self._lock:
                self.in_flight -= 1

    def fetch(self, url: str) -> bytes:
        if self.fetch_error is not None:
            raise self.fetch_error
        with self._lock:
            self.fetched.append(url)
        return b"bytes of " + url.encode()

    def save(
        self, data: bytes, received: ReceivedResponse, position: int, before_write: Callable[[StoredFile], None]
    ) -> StoredFile:
        image = (received.item.index, received.target.index_of(position))
        name = f"{image[0]:03}-{image[1]}.png"
        stored = StoredFile(
            path=f"/out/{name}",
            file_name=name,
            sha256="0" * 64,
            bytes=len(data),
            mime_type="image/png",
            width=1,
            height=1,
        )
        before_write(stored)
        if self.save_error is not None:
            raise self.save_error
        with self._lock:
            assert name not in self.files or image in self.saved, "a name was given twice"
            self.files[name] = data
            self.saved.append(image)
        return stored

    def is_stored(self, file: StoredFile) -> bool:
        return file.file_name in self.files

    def keep(self, file: StoredFile) -> StoredFile | None:
        return file if self.is_stored(file) else None

    def find_missing(self, stored: Any) -> list[StoredFile]:
        return [each for each in stored if each.file_name not in self.files]

    def iter_request_logs(self, *, start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
        assert start <= end
        with self._lock:
            self.looks += 1
            rows = list(self.rows)
        if self.log_error is not None:
            raise self.log_error
        yield from rows


def pictures(
    count: int | None = None,
    *,
    usd: Decimal | None = None,
    says_cost: bool = True,
    inline: bool = False,
    signed: bool = False,
    withheld: tuple[int, ...] = (),
    broken: tuple[int, ...] = (),
) -> Any:
    """Return a step that generates images, by default as many as requested, and bills them."""

    def step(ports: FakePorts, request: ImageRequest, client_request_id: str) -> Generation:
        made = request.expected_images if count is None else count
        cost = PRICE * request.expected_images if usd is None else usd
        ports.charge(client_request_id, cost)
        query = "?sig=hush-hush" if signed else ""
        return Generation(
            pictures=tuple(
                GeneratedImage(
                    url=None
                    if inline or place in broken
                    else f"https://cdn.test/{client_request_id}/{place}.png{query}",
                    data=b"inline" if inline and place not in broken else None,
                    withheld=place in withheld,
                    broken="base64 data that cannot be decoded" if place in broken else None,
                )
                for place in range(made)
            ),
            usd=cost if says_cost else None,
            usd_source="header" if says_cost else None,
            inference_id=f"inf-{client_request_id}",
            client_request_id=client_request_id,
            model=request.body["model"],
        )

    return step


def fails(make_error: Callable[[], Exception]) -> Any:
    """Return a step that fails with an error and bills nothing."""

    def step(ports: FakePorts, request: ImageRequest, client_request_id: str) -> Generation:
        raise make_error()

    return step


def loses(*, billed: bool = False, row: str | None = None, logged: bool = True) -> Any:
    """Return a step whose response is lost, billed or not, with or without a row in the log."""

    def step(ports: FakePorts, request: ImageRequest, client_request_id: str) -> Generation:
        if billed:
            ports.charge(client_request_id, PRICE * request.expected_images, logged=logged)
        elif row is not None:
            ports.log_row(client_request_id, row)
        raise LostAnswerError("The answer was lost.")

    return step


class World:
    """Everything around the attempts of one task."""

    def __init__(self) -> None:
        self.ports = FakePorts()
        self.store = MemoryStore()
        self.api_key = "5ec2e7" * 5
        self.cancellation = Cancellation()
        self.grace_seconds = 0.5
        self.reports: list[ImageRecord] = []
        self.journal: Journal | None = None

    def plan(self, prompts: Any, *, price: Decimal | None = PRICE, fallback_models: Any = (), **arguments: Any) -> Plan:
        return make_plan(
            prompt=prompts,
            arguments={"model": MODEL, **arguments},
            fallback_models=fallback_models,
            can_store=True,
            price=lambda request: price * request.expected_images if price is not None else None,
        )

    def run(self, plan: Any, **options: Any) -> RunResult:
        """Run one attempt."""
        if not hasattr(plan, "slots"):
            plan = self.plan(plan)
        on_image = options.pop("on_image", lambda image, done: self.reports.append(image.record))
        options = {"lost_answer_patience_seconds": 0.0, "first_wait_seconds": 0.005} | options
        self.grace_seconds = options.pop("grace_seconds", 0.5)
        options = {"rate_limit_patience_seconds": 2.0} | options
        journal = self.journal = Journal(self.store)
        journal.open()
        try:
            return Run(
                ti_key=TI_KEY,
                plan=plan,
                api=self.ports,
                sink=self.ports if self.ports.stores else None,
                journal=journal,
                options=RunOptions(**options),
                encryption=UrlEncryption(self.api_key),
                cancellation=self.cancellation,
                on_image=on_image,
            ).execute()
        finally:
            journal.close()

    def cancel(self) -> None:
        """Cancel the running attempt."""
        self.cancellation.cancel("the test says so", grace_seconds=self.grace_seconds)

    def resume(self) -> None:
        """Let the next attempt run."""
        self.cancellation = Cancellation()

    def records_by_type(self) -> dict[str, int]:
        """Count the records of the journal by their type."""
        return dict(Counter(record["t"] for record in self.store.records))

    @property
    def requests(self) -> dict[str, Any]:
        """Return the requests that the next attempt would read from the journal."""
        return read_journal(self.store).requests


@pytest.fixture
def memory_store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def new_world() -> type[World]:
    """Return the class, for property tests that need a world per example."""
    return World


@pytest.fixture(scope="session")
def steps() -> Any:
    """Return the steps an API can take for a POST: ``steps.pictures``, ``steps.fails``, ``steps.loses``."""

    class Steps:
        pass

    made = Steps()
    made.pictures, made.fails, made.loses = pictures, fails, loses
    return made
