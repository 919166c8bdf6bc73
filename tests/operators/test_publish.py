"""What an attempt publishes, when, and what it leaves to an attempt that has taken over."""

from __future__ import annotations

import json
import threading
import time
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Asset
from memory_store import MemoryStore
from msgspec.structs import replace
from PIL import Image

from airflow_provider_imagen.exceptions import BadImageError, InvalidRequestError, StorageError
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.log import HEADER, Journal
from airflow_provider_imagen.journal.records import Response, Target
from airflow_provider_imagen.operators import publish
from airflow_provider_imagen.operators.publish import Publisher
from airflow_provider_imagen.run.plan import Plan, PromptItem
from airflow_provider_imagen.run.results import Failure, FinishedImage, ReceivedResponse, RunResult
from airflow_provider_imagen.storage.manifest import read_failures, read_manifest, write_manifest
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(30)

TI_KEY = TaskInstanceKey(dag_id="dag", task_id="paint", run_id="run")
ITEM = PromptItem(0, None, "a fox", {}, 99)


class Instance:
    """A task instance that remembers what was pushed, the latest value per key."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        self.pushes = 0
        self.before_push: Callable[[], object] = lambda: None

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.before_push()
        self.pushed[key] = value
        self.pushes += 1


class OutletEvents:
    """``outlet_events`` of Airflow's context: one event per outlet. An Asset is not hashable in Airflow 3.1."""

    def __init__(self, outlets: list[Asset]) -> None:
        self.by_name = {outlet.name: SimpleNamespace(extra=None) for outlet in outlets}

    def __getitem__(self, outlet: Asset) -> SimpleNamespace:
        return self.by_name[outlet.name]


class Attempt:
    """One attempt of a task with two asset outlets, its journal and its folder."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.folder = root
        self.ti = Instance()
        self.outlets = [Asset("first"), Asset("second")]
        self.events = OutletEvents(self.outlets)
        self.operator: Any = SimpleNamespace(output_path=str(root), contact_sheet=False, outlets=self.outlets)
        self.store = MemoryStore()
        self.journal = Journal(self.store)
        self.journal.open()
        context: Any = {"ti": self.ti, "outlet_events": self.events}
        options = {"folder": root, "context": context} | options
        self.publisher = Publisher(self.operator, ti_key=TI_KEY, airflow_lock=threading.RLock(), **options)

    def is_taken_over(self) -> None:
        other = Journal(self.store)
        other.open()
        other.close()

    def listed(self) -> list[str]:
        return [line["file_name"] for line in read_manifest(self.folder)]


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    made = Attempt(tmp_path)
    yield made
    made.journal.close()


def png() -> bytes:
    target = BytesIO()
    Image.new("RGB", (32, 32), "teal").save(target, format="PNG")
    return target.getvalue()


def result_of(images: int, folder: Path | None, *, failures: int = 0, **options: Any) -> RunResult:
    """Return a result with some images, stored if there is a folder, and some failed items."""
    made = []
    for number in range(images):
        response = Response(
            key=f"k{number}",
            client_request_id=f"r{number}",
            images=(ResponseImage(url=f"https://cdn.test/{number}.png"),),
            usd=Decimal("0.04"),
            model="imagen",
            at=1.0,
        )
        target = Target(prompt_index=0, image_index=number, images=1, prompt_images=99, prompt="a fox")
        received = ReceivedResponse(f"k{number}", 0, ITEM, target, response)
        file = save_image(png(), folder=folder, stem=f"{number:03}", **options).file if folder is not None else None
        made.append(FinishedImage(received, 0, f"https://cdn.test/{number}.png", file))
    failed = [Failure(ITEM, [InvalidRequestError("no", status=400, client_request_id="bad")], made=0)] * failures
    return RunResult(
        plan=Plan(items=(), slots=()),
        made=made,
        superseded=[],
        failures=failed,
        not_sent=[],
        abort_reason=None,
        usd_spent=Decimal("0.04") * images,
        usd_lost=Decimal(0),
        usd_in_doubt=Decimal(0),
        in_doubt=[],
        lost=[],
        usd_is_estimate=False,
        seconds=1.0,
    )


# --- publishing once --------------------------------------------------------------------------------------------------


class GrowingResult:
    """The result so far of a run that has one more image each time somebody looks."""

    def __init__(self, folder: Path | None) -> None:
        self.looks = 0
        self._folder = folder

    def __call__(self) -> RunResult:
        self.looks += 1
        return result_of(self.looks, self._folder)


def test_the_end_of_a_run_publishes_manifest_xcom_asset_events_and_contact_sheet(attempt):
    attempt.operator.contact_sheet = True
    result = result_of(2, attempt.folder)
    summary = attempt.publisher.publish(result, attempt.journal)
    assert attempt.listed() == ["000.png", "001.png"]
    assert {line["created_at"] for line in read_manifest(attempt.folder)} == {"1970-01-01T00:00:01+00:00"}
    assert attempt.ti.pushed == {
        "images": [record.to_json() for record in result.records],
        "summary": summary.to_json(),
    }
    assert (summary.output_path, summary.manifest) == (str(attempt.folder), str(attempt.folder / "metadata.jsonl"))
    assert (summary.made, summary.usd_spent) == (2, 0.08)
    assert Path(summary.contact_sheet).is_file()
    assert [event.extra for event in attempt.events.by_name.values()] == [summary.to_json()] * 2


def test_a_result_during_the_run_gets_neither_contact_sheet_nor_asset_events(attempt):
    attempt.operator.contact_sheet = True
    summary = attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal, is_final=False)
    assert attempt.listed() == ["000.png"]
    assert attempt.ti.pushed["summary"] == summary.to_json()
    assert summary.contact_sheet is None
    assert {event.extra for event in attempt.events.by_name.values()} == {None}


@pytest.mark.parametrize(("images", "wants_sheet"), [(0, True), (1, False)])
def test_a_contact_sheet_needs_a_request_and_an_image(attempt, images, wants_sheet):
    attempt.operator.contact_sheet = wants_sheet
    assert attempt.publisher.publish(result_of(images, attempt.folder), attempt.journal).contact_sheet is None


def test_without_a_folder_only_xcom_and_asset_events_are_published(tmp_path):
    attempt = Attempt(tmp_path, folder=None)
    summary = attempt.publisher.publish(result_of(1, None), attempt.journal)
    assert (summary.output_path, summary.manifest, summary.made) == (None, None, 1)
    assert attempt.ti.pushed["images"][0]["url"] == "https://cdn.test/0.png"
    assert attempt.events[attempt.outlets[0]].extra == summary.to_json()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("context", [{}, {"ti": None}, {"ti": object()}])
def test_a_context_without_xcom_and_outlets_still_gets_a_manifest(tmp_path, context):
    attempt = Attempt(tmp_path, context=context)
    assert attempt.publisher.publish(result_of(1, tmp_path), None).made == 1
    assert attempt.listed() == ["000.png"]


def test_an_attempt_without_a_journal_publishes(attempt):
    attempt.publisher.publish(result_of(1, attempt.folder), None)
    assert attempt.ti.pushed["summary"]["made"] == 1


def test_an_attempt_whose_supervisor_died_writes_the_manifest_alone(attempt):
    attempt.publisher.can_reach_airflow = False
    attempt.publisher.publish(result_of(1, attempt.folder), None)
    assert attempt.listed() == ["000.png"]
    assert attempt.ti.pushed == {}


def test_too_many_records_for_xcom_are_left_to_the_manifest(attempt, monkeypatch):
    result = result_of(2, attempt.folder)
    size = len(json.dumps([record.to_json() for record in result.records]))
    monkeypatch.setattr(publish, "MAX_XCOM_BYTES", size)
    attempt.publisher.publish(result, attempt.journal)
    assert len(attempt.ti.pushed["images"]) == 2
    monkeypatch.setattr(publish, "MAX_XCOM_BYTES", size - 1)
    attempt.publisher.publish(result, attempt.journal)
    assert attempt.ti.pushed["images"] == {"manifest": str(attempt.folder / "metadata.jsonl"), "count": 2}


def test_failures_replace_those_of_a_previous_attempt_unless_they_are_kept(attempt):
    attempt.publisher.publish(result_of(0, attempt.folder, failures=1), attempt.journal)
    assert [line.client_request_id for line in read_failures(attempt.folder, TI_KEY)] == ["bad"]
    attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal, keeps_failures=True)
    assert len(read_failures(attempt.folder, TI_KEY)) == 1
    attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert read_failures(attempt.folder, TI_KEY) == []


@pytest.mark.parametrize("thumbnail_pixels", [None, 16])
def test_a_contact_sheet_shows_previews_if_there_are_any(attempt, monkeypatch, thumbnail_pixels):
    shown = []
    monkeypatch.setattr(publish, "write_contact_sheet", lambda *_, **options: shown.append(options))
    monkeypatch.setattr(publish, "MAX_SHEET_PICTURES", 2)
    attempt.operator.contact_sheet = True
    attempt.publisher.publish(result_of(3, attempt.folder, thumbnail_pixels=thumbnail_pixels), attempt.journal)
    names = ["000.png", "001.png"]
    if thumbnail_pixels is not None:
        names = [f".imagen/thumbnails/{name}.webp" for name in names]
    assert shown[0]["images"] == [(name, f"0.{index} imagen: a fox") for index, name in enumerate(names)]
    assert (shown[0]["count"], shown[0]["title"]) == (2, "dag · paint · run")


def test_a_contact_sheet_that_fails_costs_nothing_else(attempt, monkeypatch):
    def fail(*_: Any, **__: Any) -> str:
        raise BadImageError("too many")

    monkeypatch.setattr(publish, "write_contact_sheet", fail)
    attempt.operator.contact_sheet = True
    summary = attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert summary.contact_sheet is None
    assert attempt.ti.pushed["summary"] == summary.to_json()


def test_a_manifest_that_cannot_be_written_is_raised_only_when_nothing_else_went_wrong(attempt, monkeypatch):
    def refuse(*_: Any, **__: Any) -> str:
        raise StorageError("The store is away.")

    monkeypatch.setattr(publish, "write_manifest", refuse)
    with pytest.raises(StorageError, match="away"):
        attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert attempt.ti.pushed["summary"]["made"] == 1
    for result in (
        result_of(1, attempt.folder, failures=1),
        replace(result_of(1, attempt.folder), abort_reason=InvalidRequestError("no")),
    ):
        assert attempt.publisher.publish(result, attempt.journal).manifest is None


# --- progress ---------------------------------------------------------------------------------------------------------


def progress_of(attempt: Attempt) -> list[str] | None:
    path = attempt.folder / ".imagen" / "progress" / f"{TI_KEY.identity}.jsonl"
    return [json.loads(line)["file_name"] for line in path.read_text().splitlines()] if path.exists() else None


def test_progress_is_one_xcom_and_one_file_and_leaves_the_manifest_alone(attempt):
    attempt.publisher.publish_progress(result_of(2, attempt.folder), attempt.journal)
    assert progress_of(attempt) == ["000.png", "001.png"]
    (summary,) = attempt.ti.pushed.values()
    assert (summary["made"], summary["usd_spent"], summary["in_progress"]) == (2, 0.08, True)
    assert summary["manifest"] == str(attempt.folder / "metadata.jsonl")
    assert not (attempt.folder / "metadata.jsonl").exists()


def test_progress_is_published_again_only_if_counts_or_costs_have_changed(attempt):
    result = result_of(1, attempt.folder)
    for changed, pushes in (
        (result, 1),
        (replace(result, seconds=9.0), 1),
        (replace(result, usd_in_doubt=Decimal(1)), 2),
        (result_of(1, attempt.folder, failures=1), 3),
        (result_of(2, attempt.folder, failures=1), 4),
    ):
        attempt.publisher.publish_progress(changed, attempt.journal)
        assert attempt.ti.pushes == pushes


def test_without_a_folder_progress_is_one_xcom(tmp_path):
    attempt = Attempt(tmp_path, folder=None)
    attempt.publisher.publish_progress(result_of(1, None), attempt.journal)
    assert (attempt.ti.pushed["summary"]["made"], attempt.ti.pushed["summary"]["manifest"]) == (1, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", ["taken over", "behind", "supervisor"])
def test_an_attempt_that_cannot_or_must_not_publish_its_results_publishes_no_progress(attempt, monkeypatch, reason):
    if reason == "taken over":
        attempt.is_taken_over()
        monkeypatch.setattr(publish, "OWNERSHIP_MAX_AGE_SECONDS", -1)
    elif reason == "behind":
        monkeypatch.setattr(publish, "MAX_JOURNAL_DELAY_SECONDS", -1)
    else:
        attempt.publisher.can_reach_airflow = False
    attempt.publisher.publish_progress(result_of(1, attempt.folder), attempt.journal)
    assert (attempt.ti.pushed, progress_of(attempt)) == ({}, None)


def test_the_end_of_a_run_ends_its_progress(attempt):
    attempt.publisher.publish_progress(result_of(1, attempt.folder), attempt.journal)
    attempt.publisher.publish(result_of(2, attempt.folder), attempt.journal, is_final=False)
    assert attempt.ti.pushed["summary"]["in_progress"] is True
    assert progress_of(attempt) == ["000.png"]
    attempt.publisher.publish(result_of(2, attempt.folder), attempt.journal)
    assert attempt.ti.pushed["summary"]["in_progress"] is False
    assert progress_of(attempt) is None


def test_an_attempt_that_lost_the_journal_leaves_the_progress_of_the_other(attempt):
    attempt.publisher.publish_progress(result_of(1, attempt.folder), attempt.journal)
    attempt.is_taken_over()
    attempt.publisher.publish(result_of(2, attempt.folder), attempt.journal)
    assert progress_of(attempt) == ["000.png"]


# --- two attempts at once ---------------------------------------------------------------------------------------------


def test_an_attempt_that_lost_the_journal_lists_its_images_and_leaves_xcom_to_the_other(attempt):
    attempt.is_taken_over()
    summary = attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert summary.made == 1
    assert attempt.listed() == ["000.png"]
    parts = [path.name for path in (attempt.folder / ".imagen" / "parts").iterdir()]
    assert parts == [f"{TI_KEY.identity}-{attempt.journal.owner}.jsonl"]
    assert attempt.ti.pushed == {}
    assert {event.extra for event in attempt.events.by_name.values()} == {None}


def test_an_attempt_that_loses_the_journal_while_it_publishes_pushes_nothing_more(attempt, monkeypatch):
    monkeypatch.setattr(publish, "OWNERSHIP_MAX_AGE_SECONDS", -1)
    attempt.ti.before_push = attempt.is_taken_over
    attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert list(attempt.ti.pushed) == ["images"]


def test_a_quick_publication_checks_once_who_owns_the_journal(attempt, monkeypatch):
    read, names = attempt.store.read, []
    monkeypatch.setattr(attempt.store, "read", lambda name: names.append(name) or read(name))
    attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert names == [HEADER]
    assert list(attempt.ti.pushed) == ["images", "summary"]


@pytest.mark.parametrize("other_has_finished", [True, False])
def test_an_attempt_whose_journal_is_gone_publishes_unless_another_one_has(attempt, other_has_finished):
    if other_has_finished:
        write_manifest(attempt.folder, ti_key=TI_KEY, lines=[])
    attempt.store.texts.clear()
    attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal)
    assert bool(attempt.ti.pushed) is not other_has_finished
    assert attempt.listed() == ["000.png"]


def test_without_a_folder_an_attempt_whose_journal_is_gone_publishes_nothing(tmp_path):
    attempt = Attempt(tmp_path, folder=None)
    attempt.store.texts.clear()
    attempt.publisher.publish(result_of(1, None), attempt.journal)
    assert attempt.ti.pushed == {}


@pytest.mark.parametrize("is_final", [True, False])
def test_while_the_journal_is_behind_xcom_waits_for_the_end_of_the_run(attempt, monkeypatch, is_final):
    """The same database is behind both; the manifest is not in it."""
    monkeypatch.setattr(publish, "MAX_JOURNAL_DELAY_SECONDS", -1)
    attempt.publisher.publish(result_of(1, attempt.folder), attempt.journal, is_final=is_final)
    assert attempt.listed() == ["000.png"]
    assert bool(attempt.ti.pushed) is is_final


# --- during the run ---------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


def test_a_requested_publication_starts_at_once_and_is_complete_when_the_run_ends(attempt):
    started = threading.Event()

    def push_slowly() -> None:
        started.set()
        time.sleep(0.3)

    attempt.ti.before_push = push_slowly
    with attempt.publisher.publishing(lambda: result_of(1, attempt.folder), attempt.journal):
        attempt.publisher.publish_now()
        assert started.wait(5)
    assert attempt.ti.pushed["summary"]["made"] == 1


def test_a_run_publishes_new_images_at_intervals_and_an_unchanged_result_never(attempt, monkeypatch):
    monkeypatch.setattr(publish, "PROGRESS_INTERVAL_SECONDS", 60.0)
    monkeypatch.setattr(publish, "PUBLISH_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(publish, "MAX_PUBLISHING_SHARE", 1.0)
    images, looks = 1, []

    def snapshot() -> RunResult:
        looks.append(images)
        return result_of(images, attempt.folder)

    with attempt.publisher.publishing(snapshot, attempt.journal):
        assert wait_until(lambda: attempt.ti.pushes == 2)
        looks.clear()
        assert wait_until(lambda: looks)
        assert attempt.ti.pushes == 2
        images = 2
        assert wait_until(lambda: attempt.ti.pushes == 4)
    assert attempt.ti.pushed["summary"]["made"] == 2


def test_slow_publications_make_the_interval_longer(attempt, monkeypatch):
    monkeypatch.setattr(publish, "PROGRESS_INTERVAL_SECONDS", 60.0)
    monkeypatch.setattr(publish, "PUBLISH_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(publish, "MAX_PUBLISHING_SHARE", 1e-9)
    snapshot = GrowingResult(attempt.folder)
    with attempt.publisher.publishing(snapshot, attempt.journal):
        assert wait_until(lambda: attempt.ti.pushes == 2)
        assert not wait_until(lambda: snapshot.looks > 1, seconds=2.5)


def test_a_run_publishes_its_progress_more_often_than_its_manifest(attempt, monkeypatch):
    monkeypatch.setattr(publish, "PROGRESS_INTERVAL_SECONDS", 0.0)
    images = 1
    with attempt.publisher.publishing(lambda: result_of(images, attempt.folder), attempt.journal):
        assert wait_until(lambda: attempt.ti.pushed.get("summary", {}).get("made") == 1)
        images = 2
        assert wait_until(lambda: progress_of(attempt) == ["000.png", "001.png"])
    assert attempt.listed() == []


def test_progress_does_not_wait_longer_because_airflow_is_slow(attempt, monkeypatch):
    monkeypatch.setattr(publish, "PROGRESS_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(publish, "MAX_PROGRESS_CPU_SHARE", 1.0)
    monkeypatch.setattr(publish, "MAX_PUBLISHING_SHARE", 1e-9)
    snapshot = GrowingResult(attempt.folder)
    attempt.ti.before_push = lambda: time.sleep(0.1)
    with attempt.publisher.publishing(snapshot, attempt.journal):
        assert wait_until(lambda: attempt.ti.pushes == 3)


def test_costly_progress_is_published_less_often(attempt, monkeypatch):
    monkeypatch.setattr(publish, "PROGRESS_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(publish, "MAX_PROGRESS_CPU_SHARE", 1e-9)
    snapshot = GrowingResult(attempt.folder)
    with attempt.publisher.publishing(snapshot, attempt.journal):
        assert wait_until(lambda: attempt.ti.pushes == 1)
        assert not wait_until(lambda: snapshot.looks > 1, seconds=1.5)


def test_nothing_is_published_before_the_first_interval_is_over(attempt):
    with attempt.publisher.publishing(lambda: result_of(1, attempt.folder), attempt.journal):
        assert not wait_until(lambda: attempt.ti.pushed, seconds=1.5)


@pytest.mark.parametrize("reason", ["taken over", "behind"])
def test_the_manifest_is_written_at_once_while_the_journal_records_nothing(attempt, monkeypatch, reason):
    if reason == "taken over":
        attempt.is_taken_over()
        assert not attempt.journal.still_owns()
    else:
        monkeypatch.setattr(publish, "MAX_JOURNAL_DELAY_SECONDS", -1)
    with attempt.publisher.publishing(lambda: result_of(1, attempt.folder), attempt.journal):
        assert wait_until(lambda: (attempt.folder / "metadata.jsonl").exists(), seconds=5)
    assert attempt.ti.pushed == {}


def test_a_publication_that_fails_during_the_run_ends_nothing(attempt):
    def fail() -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("a bug")

    failed = threading.Event()
    attempt.ti.before_push = fail
    with attempt.publisher.publishing(lambda: result_of(1, attempt.folder), attempt.journal):
        attempt.publisher.publish_now()
        assert failed.wait(5)
        attempt.publisher.publish_now()
        assert wait_until(lambda: len(attempt.ti.pushed) == 2)
