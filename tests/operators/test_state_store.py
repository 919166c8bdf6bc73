from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen.exceptions import JournalError
from airflow_provider_imagen.journal import log as log_module
from airflow_provider_imagen.journal.log import Journal, StoreUnavailableError
from airflow_provider_imagen.journal.records import Rejected
from airflow_provider_imagen.journal.stores import TaskStateJournalStore
from airflow_provider_imagen.operators.state_store import AirflowStateStore

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(60)

AWAY = {"status_code": None, "message": "[Errno 111] Connection refused", "exception_type": "ConnectError"}
DATABASE_AWAY = {"status_code": 500, "message": "Internal Server Error", "detail": None}
GATEWAY = {"status_code": 503, "message": "Service Unavailable"}
OVER = {"status_code": 404, "message": "Server returned error", "detail": {"detail": {"reason": "not_found"}}}
ODD = {"status_code": 400, "message": "Unhandled request"}

CALLS: dict[str, Callable[[AirflowStateStore], Any]] = {
    "get": lambda store: store.get("key", "default"),
    "set": lambda store: store.set("key", "text", retention=9),
    "delete": lambda store: store.delete("key"),
}


def airflow_error(detail: dict[str, Any] | None) -> Exception:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))


class StateStore:
    """Airflow's task state store, which raises the given errors."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.error: Exception | None = None
        self.seconds = 0.0
        self.calls = 0
        self.most_at_once = 0
        self._at_once = 0

    def get(self, key: str, default: Any = None) -> Any:
        return self._call(lambda: self.values.get(key, default))

    def set(self, key: str, value: Any, **retention: Any) -> None:
        self._call(lambda: self.values.update({key: (value, retention)}))

    def delete(self, key: str) -> None:
        self._call(lambda: self.values.pop(key, None))

    def _call(self, act: Callable[[], Any]) -> Any:
        self._at_once += 1
        self.calls += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            return act()
        finally:
            self._at_once -= 1


class TextStateStore(StateStore):
    """The same, for a journal: it returns what was set."""

    def set(self, key: str, value: Any, **retention: Any) -> None:
        self._call(lambda: self.values.update({key: value}))


def test_calls_reach_airflow_unchanged():
    airflow = StateStore()
    store = AirflowStateStore(airflow, threading.RLock())
    assert store.get("key") is None
    assert store.get("key", "default") == "default"
    store.set("key", "text", retention=9)
    assert store.get("key") == ("text", {"retention": 9})
    store.delete("key")
    assert airflow.values == {}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("detail", [AWAY, DATABASE_AWAY, GATEWAY])
def test_an_unavailable_api_server_is_worth_a_retry(detail, call):
    airflow = StateStore()
    airflow.error = airflow_error(detail)
    with pytest.raises(StoreUnavailableError) as caught:
        CALLS[call](AirflowStateStore(airflow, threading.RLock()))
    assert caught.value.__cause__ is airflow.error
    assert airflow.calls == 1, "whoever asked decides when to try again"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("detail", [OVER, ODD, None, {}])
def test_a_rejection_is_distinguished_from_an_outage(detail, call):
    """An orphan must learn at once that its task is over for Airflow, and buy nothing more."""
    airflow = StateStore()
    airflow.error = airflow_error(detail)
    with pytest.raises(type(airflow.error), match="API_SERVER_ERROR") as caught:
        CALLS[call](AirflowStateStore(airflow, threading.RLock()))
    assert caught.value is airflow.error


@pytest.mark.parametrize("call", CALLS)
def test_an_error_without_an_api_server_is_not_an_outage(call):
    airflow = StateStore()
    airflow.error = EOFError("Request socket closed")
    with pytest.raises(EOFError):
        CALLS[call](AirflowStateStore(airflow, threading.RLock()))


def test_airflow_is_called_by_one_thread_at_a_time():
    """``airflow tasks test`` cannot take two calls at once."""
    airflow = StateStore()
    airflow.seconds = 0.002
    store = AirflowStateStore(airflow, threading.RLock())
    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(CALLS[name], store) for name in [*CALLS] * 8]:
            future.result()
    assert airflow.calls == 24
    assert airflow.most_at_once == 1


@pytest.mark.parametrize("call", CALLS)
def test_a_call_waits_for_other_calls_to_airflow(call):
    airflow, lock = StateStore(), threading.RLock()
    with ThreadPoolExecutor(1) as threads:
        with lock:
            waiting = threads.submit(CALLS[call], AirflowStateStore(airflow, lock))
            time.sleep(0.05)
            assert airflow.calls == 0
        waiting.result()
    assert airflow.calls == 1


def test_an_outage_releases_the_lock():
    airflow, lock = StateStore(), threading.RLock()
    airflow.error = airflow_error(AWAY)
    with ThreadPoolExecutor(1) as threads, pytest.raises(StoreUnavailableError):
        threads.submit(CALLS["set"], AirflowStateStore(airflow, lock)).result()
    assert lock.acquire(timeout=5)


# --- with the journal on top of it ------------------------------------------------------------------------------------


def journal_in(airflow: StateStore) -> Journal:
    journal = Journal(TaskStateJournalStore(AirflowStateStore(airflow, threading.RLock()), {}))
    journal.open()
    return journal


@pytest.mark.parametrize("detail", [AWAY, DATABASE_AWAY])
def test_a_journal_waits_for_an_unavailable_api_server(detail, monkeypatch, caplog):
    monkeypatch.setattr(log_module, "RETRY_PAUSE_SECONDS", 0.005)
    airflow = TextStateStore()
    journal = journal_in(airflow)
    airflow.error = airflow_error(detail)
    calls = airflow.calls
    waiting = journal.append(Rejected(key="a#1", client_request_id="r1"))
    while airflow.calls < calls + 4:
        time.sleep(0.002)
    assert not waiting.done()
    airflow.error = None
    waiting.result(timeout=10)
    journal.close()
    assert '"r1"' in airflow.values[f"imagen/journal/{journal.owner}/0"]
    assert len(caplog.messages) == 1, "reported once, not after every retry"


@pytest.mark.parametrize("detail", [OVER, ODD, None])
def test_a_journal_that_airflow_rejects_fails_at_once(detail):
    airflow = TextStateStore()
    journal = journal_in(airflow)
    airflow.error = airflow_error(detail)
    calls = airflow.calls
    with pytest.raises(JournalError, match=r"cannot be written \(AirflowRuntimeError\), so no new requests are sent"):
        journal.commit(Rejected(key="a#1", client_request_id="r1"))
    assert airflow.calls == calls + 1
    journal.close()


@pytest.mark.parametrize("detail", [AWAY, OVER])
def test_a_journal_that_cannot_be_read_from_airflow_is_not_opened(detail):
    airflow = TextStateStore()
    airflow.error = airflow_error(detail)
    with pytest.raises(JournalError, match="nothing was sent"):
        journal_in(airflow)
    assert airflow.values == {}
