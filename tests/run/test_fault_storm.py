"""All faults at once, over the wire, until every image is stored or reported lost: the accounts must match."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.download.downloader import Downloader
from airflow_provider_imagen.exceptions import ChargedButLostError
from airflow_provider_imagen.journal.log import Journal
from airflow_provider_imagen.journal.stores import FolderJournalStore
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.api_adapter import ApiAdapter
from airflow_provider_imagen.run.image_sink import ImageSink
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.ports import RunOptions
from airflow_provider_imagen.run.results import failure_table
from airflow_provider_imagen.run.runner import Run
from airflow_provider_imagen.run.shared_state import Cancellation
from airflow_provider_imagen.sandbox import Fault, Sandbox
from airflow_provider_imagen.storage.atomic_write import remove_leftovers
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_imagen.run.results import RunResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TI_KEY = TaskInstanceKey(dag_id="storm", task_id="make", run_id="r1")
READ_TIMEOUT_SECONDS = 0.7
PRICE = Decimal("0.042")

STORM = (
    Fault("reset", billed=True, prompt="number 33 "),
    Fault("status", status=429, retry_after=0.05, times=None, probability=0.10),
    Fault("status", status=500, times=None, probability=0.06),
    Fault("status", status=503, retry_after=0.05, times=None, probability=0.06),
    Fault("reset", times=None, probability=0.04),
    Fault("reset", billed=True, times=None, probability=0.04),
    Fault("hang", times=None, probability=0.02),
    Fault("hang", billed=True, times=None, probability=0.02),
    Fault("cut_body", times=None, probability=0.03),
    Fault("html", status=502, times=None, probability=0.03),
    Fault("html", status=504, billed=True, times=None, probability=0.03),
    Fault("slow", seconds=0.15, times=None, probability=0.10),
    Fault("slow_after_billing", seconds=0.15, times=None, probability=0.05),
    Fault("usage", usage="credits_used", times=None, probability=0.10),
    Fault("shape", shape="b64_json", times=None, probability=0.10),
    Fault("signed_links", times=None, probability=0.20),
    Fault("cut_image", times=None, probability=0.20),
    Fault("status", on="download", status=500, times=None, probability=0.10),
    Fault("not_an_image", times=None, probability=0.05),
    Fault("wrong_content_type", times=None, probability=0.10),
    Fault("status", path="/v2/logs", status=500, times=None, probability=0.10),
    Fault("reset", path="/v2/logs", times=None, probability=0.10),
)


@pytest.fixture(scope="module")
def storm() -> Iterator[Sandbox]:
    with Sandbox(picture_scale=0.0625, log_lag_seconds=0.05, balance_usd=Decimal(1000)) as sandbox:
        yield sandbox


class Task:
    """One task over its attempts: a folder, a journal beside it, and the real client, downloader and sink."""

    def __init__(
        self,
        sandbox: Sandbox,
        folder: Path,
        prompts: Any,
        *,
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
        **arguments: Any,
    ) -> None:
        self.sandbox = sandbox
        self.read_timeout_seconds = read_timeout_seconds
        self.folder = folder
        self.plan = make_plan(
            prompt=prompts,
            arguments={"model": "imagen-3.0-generate-002", **arguments},
            can_store=True,
            price=lambda request: PRICE * request.expected_images,  # some responses state no cost
        )

    def run(self, **options: Any) -> RunResult:
        client = ApiClient(
            ClientSettings(
                base_url=self.sandbox.url,
                api_key=self.sandbox.api_key,
                read_timeout_seconds=self.read_timeout_seconds,
            )
        )
        downloader = Downloader(
            allow_private_hosts=True,
            read_timeout_seconds=self.read_timeout_seconds,
            sleep=lambda seconds: time.sleep(min(seconds, 0.01)),
        )
        journal = Journal(FolderJournalStore(self.folder, TI_KEY.identity))
        journal.open()
        remove_leftovers(self.folder, owner=TI_KEY.identity)
        try:
            sink = ImageSink(
                folder=self.folder,
                open_path=Path,
                plan=self.plan,
                requests=journal.state.requests,
                ti_key=TI_KEY,
                filename="{index}-{image}",
            )
            return Run(
                ti_key=TI_KEY,
                plan=self.plan,
                api=ApiAdapter(client=client, downloader=downloader),
                sink=sink,
                journal=journal,
                options=RunOptions(**{"lost_answer_patience_seconds": 0.4, "first_wait_seconds": 0.01} | options),
                encryption=UrlEncryption(self.sandbox.api_key),
                cancellation=Cancellation(),
            ).execute()
        finally:
            journal.close()
            client.close()
            downloader.close()

    def pictures(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.is_file())


def is_done(result: RunResult) -> bool:
    return result.abort_reason is None and all(
        isinstance(failure.error, ChargedButLostError) for failure in result.failures
    )


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_after_all_faults_every_image_is_stored_or_reported_lost_and_the_accounts_match(storm, tmp_path, concurrency):
    storm.reset()
    storm.configure(seed=concurrency)
    for fault in STORM:
        storm.add_fault(fault)
    task = Task(storm, tmp_path, [f"a boat number {number} on a calm sea" for number in range(60)])
    for _ in range(25):
        if is_done(task.run(concurrency=concurrency)):
            break
    posts = len(storm.seen("/v1/images/generations"))
    storm.clear_faults()
    time.sleep(0.3)
    result = task.run(concurrency=concurrency)
    assert is_done(result), failure_table(result.failures)
    assert len(storm.seen("/v1/images/generations")) == posts, "a finished task sent something"

    ledger = storm.ledger()
    billed = {charge.client_request_id for charge in ledger}
    lost = sum(isinstance(failure.error, ChargedButLostError) for failure in result.failures)
    files = task.pictures()
    assert len(files) == 60 - lost == len(result.made)
    for path in files:
        with Image.open(path) as image:
            image.load()
    made_by = {record.client_request_id for record in result.records}
    assert made_by <= billed
    assert result.usd_spent == sum((charge.usd for charge in ledger), Decimal(0))
    assert result.usd_lost == sum(
        (charge.usd for charge in ledger if charge.client_request_id not in made_by), Decimal(0)
    )
    assert len(billed) == len(ledger), "an id was billed twice"
    assert len({charge.prompt for charge in ledger}) == 60
    assert len(ledger) - len(made_by) >= lost
    assert 0 < lost < 30, "no storm, or nothing but storm"

    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in everything if path.name.endswith(".part") or ".imagen-" in path.name]
    assert not [path for path in everything if storm.api_key.encode() in path.read_bytes()]
    (journal_text,) = ["".join(path.read_text() for path in everything if path.suffix == ".jsonl")]
    assert "Signature=" not in journal_text
    assert "Expires=" not in journal_text
    assert "authorization" not in {name for seen in storm.seen() if seen.host == "cdn" for name in seen.headers}


def test_several_images_per_prompt_and_every_way_to_withhold_them(storm, tmp_path):
    storm.reset()
    storm.configure(seed=7)
    for fault in (
        Fault("fewer", count=2, times=None, prompt="fewer"),
        Fault("none", times=None, prompt="none"),
        Fault("content_violation", times=None, prompt="flagged"),
        Fault("error_in_200", times=None, prompt="error"),
        Fault("wrong_json", times=None, prompt="unreadable"),
        Fault("bad_base64", times=None, prompt="broken"),
        Fault("upstream_4xx", times=None, prompt="refused"),
        Fault("usage", usage="nothing", times=None, prompt="free"),
    ):
        storm.add_fault(fault)
    names = ["fewer", "none", "flagged", "error", "unreadable", "broken", "refused", "fine"]
    task = Task(storm, tmp_path, names, num_images=3, read_timeout_seconds=60)  # nothing hangs here
    first = task.run()
    errors = {failure.item.prompt: type(failure.error).__name__ for failure in first.failures}
    assert errors == {
        "fewer": "FilteredError",
        "none": "EmptyResultError",
        "flagged": "FilteredError",
        "error": "InvalidRequestError",
        "unreadable": "UnreadableResponseError",
        "broken": "UnreadableResponseError",
        "refused": "InvalidRequestError",
    }
    assert len(task.pictures()) == 5 == len(first.made)
    assert first.usd_spent == sum((charge.usd for charge in storm.ledger()), Decimal(0))
    posts = {seen.json["prompt"] for seen in storm.seen("/v1/images/generations")}
    assert posts == set(names)
    second = task.run()
    assert [record.path for record in second.records] == [record.path for record in first.records]
    sent_again = [seen.json["prompt"] for seen in storm.seen("/v1/images/generations")][len(names) :]
    assert sorted(sent_again) == ["error", "refused"], "only what billed nothing is sent again"
    assert second.usd_spent == sum((charge.usd for charge in storm.ledger()), Decimal(0))
