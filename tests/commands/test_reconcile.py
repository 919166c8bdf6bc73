"""``airflow-imagen reconcile`` over HTTP: the outcomes of in-doubt requests, and the journal afterwards."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.exceptions import LostAnswerError
from airflow_provider_imagen.journal.log import Journal, read_journal
from airflow_provider_imagen.journal.records import Finished, Target, new_intent
from airflow_provider_imagen.journal.stores import FolderJournalStore
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

MODEL = "imagen-3.0-generate-002"


@pytest.fixture
def doubts(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Leave three requests in doubt: one that was billed, one that failed, and one that is not in the log."""
    connection = {"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(connection))
    store = FolderJournalStore(tmp_path, "ab12")
    sandbox.add_fault(Fault("reset", prompt="billed", billed=True))
    sandbox.add_fault(Fault("reset", prompt="failed", billed=False))
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))

    def leave(
        *names: str, is_finished: bool = False, age_seconds: float = 0.0, account: str = client.settings.account
    ) -> FolderJournalStore:
        journal = Journal(store, try_number=1)
        journal.open()
        for number, name in enumerate(names):
            target = Target(prompt_index=number, image_index=0, images=1, prompt_images=1, prompt=name)
            intent = new_intent(name, client_request_id=f"id-{name}", model=MODEL, usd=Decimal("0.04"), target=target)
            journal.commit(replace(intent, at=time.time() - age_seconds, account=account))
            if name != "unknown":
                with pytest.raises(LostAnswerError):
                    client.generate(
                        "/v1/images/generations", {"model": MODEL, "prompt": name}, client_request_id=f"id-{name}"
                    )
        if is_finished:
            journal.commit(Finished())
        journal.close()
        return store

    yield leave
    client.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["reconcile", *arguments, "--json"])
    return status, {row["client_request_id"]: row for row in json.loads(capsys.readouterr().out)}


def test_requests_sent_with_another_key_stay_in_doubt(
    doubts: Any, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = doubts("billed", account="another key")
    status, rows = run(capsys, str(tmp_path))

    assert (status, rows["id-billed"]["outcome"]) == (1, "other key")
    assert sandbox.seen("/v2/logs") == []
    assert read_journal(store).all_unresolved().keys() == {"id-billed"}


def test_each_outcome_is_distinguished_and_journaled(
    doubts: Any, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = doubts("failed", "billed", "unknown")
    status, rows = run(capsys, str(tmp_path))

    assert status == 1
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "id-failed": "not billed",
        "id-billed": "billed",
        "id-unknown": "unknown",
    }
    (charge,) = sandbox.ledger()
    assert rows["id-billed"]["usd"] == float(charge.usd)
    assert rows["id-billed"]["inference_id"] == charge.inference_id
    state = read_journal(store)
    assert list(state.all_unresolved()) == ["id-unknown"]
    assert state.requests["billed"].usd_lost == charge.usd
    again = run(capsys, str(tmp_path))
    assert (again[0], list(again[1])) == (1, ["id-unknown"])


def test_a_finished_task_with_nothing_in_doubt_keeps_no_journal(
    doubts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubts("failed", "billed", is_finished=True)
    assert run(capsys, str(tmp_path))[0] == 0
    assert not list((tmp_path / ".imagen" / "journal").glob("*/*"))
    assert run(capsys, str(tmp_path)) == (0, {})


def test_a_request_missing_from_the_log_for_a_day_was_not_billed(
    doubts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubts("unknown", age_seconds=25 * 3600)
    status, rows = run(capsys, str(tmp_path))
    assert (status, rows["id-unknown"]["outcome"], rows["id-unknown"]["usd"]) == (0, "not billed", 0.0)


def test_an_unreadable_log_changes_nothing(
    doubts: Any, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = doubts("billed", age_seconds=25 * 3600)
    sandbox.add_fault(Fault("status", status=401, path="/v2/logs", times=None))
    assert main(["reconcile", str(tmp_path)]) == 2
    assert "401" in capsys.readouterr().err
    assert list(read_journal(store).all_unresolved()) == ["id-billed"]


def test_a_running_attempt_keeps_its_journal(doubts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = doubts("failed")
    running = Journal(store, try_number=2)
    running.open()
    assert run(capsys, str(tmp_path))[0] == 0
    target = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt="next")
    running.commit(new_intent("next", client_request_id="id-next", model=MODEL, usd=None, target=target))
    running.close()
    assert list(read_journal(store).all_unresolved()) == ["id-next"]


def test_missing_arguments_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["folder", "--dag-id", "d"], ["--dag-id", "d", "--run-id", "r"]):
        assert main(["reconcile", *arguments]) == 2
        assert "--dag-id, --run-id and --task-id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("connection", "problem"),
    [
        (None, "export AIRFLOW_CONN_IMAGEN_OTHER="),
        ({"conn_type": "imagen", "password": "k", "extra": {"sandbxo": True}}, "did you mean 'sandbox'?"),
    ],
)
def test_an_unusable_connection_is_reported(
    connection: dict[str, Any] | None,
    problem: str,
    doubts: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = doubts("billed")
    if connection:
        monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_OTHER", json.dumps(connection))
    assert main(["reconcile", str(tmp_path), "--imagen-conn-id", "imagen_other"]) == 2
    assert problem in capsys.readouterr().err
    assert list(read_journal(store).all_unresolved()) == ["id-billed"]
