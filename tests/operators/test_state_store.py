from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from airflow_provider_imagen.operators.state_store import WRITE_PATIENCE_SECONDS, PatientStateStore

AWAY = {"status_code": None, "message": "[Errno 111] Connection refused", "exception_type": "ConnectError"}
DATABASE_AWAY = {"status_code": 500, "message": "Internal Server Error", "detail": None}
OVER = {"status_code": 404, "message": "Server returned error", "detail": {"detail": {"reason": "not_found"}}}
ODD = {"status_code": 400, "message": "Unhandled request"}


class StateStore:
    """Airflow's task state store on an API server that answers a number of writes with an error first."""

    def __init__(self, detail: dict[str, Any] | None, times: float) -> None:
        self._detail = detail
        self.left = times
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any, **retention: Any) -> None:
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        if self.left:
            self.left -= 1
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=self._detail))
        self.values[key] = (value, retention)

    def delete(self, key: str) -> None:
        del self.values[key]


def patient(store: StateStore) -> tuple[PatientStateStore, list[float]]:
    slept: list[float] = []
    clock = count(0, 10)  # Airflow itself tries for ten seconds
    return PatientStateStore(store, sleep=slept.append, now=lambda: float(next(clock))), slept


@pytest.mark.parametrize("detail", [AWAY, DATABASE_AWAY])
def test_a_write_waits_for_an_api_server_that_is_away(detail: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    store = StateStore(detail, times=4)
    waiting, slept = patient(store)
    waiting.set("imagen/journal/0", "facts", retention=9)

    assert waiting.get("imagen/journal/0") == ("facts", {"retention": 9})
    assert len(slept) == 4
    assert len(caplog.messages) == 1  # told once, not at every turn


@pytest.mark.parametrize("detail", [OVER, ODD, None])
def test_a_refused_write_is_not_tried_again(detail: dict[str, Any] | None) -> None:
    """An orphan must learn at once that its task is over for Airflow, and buy nothing more."""
    store = StateStore(detail, times=1)
    waiting, slept = patient(store)
    with pytest.raises(Exception, match="API_SERVER_ERROR"):
        waiting.set("imagen/journal/0", "facts")

    assert slept == []
    assert store.values == {}


def test_an_api_server_that_stays_away_is_given_up() -> None:
    waiting, slept = patient(StateStore(AWAY, times=float("inf")))
    with pytest.raises(Exception, match="Connection refused"):
        waiting.set("imagen/journal/0", "facts")

    assert len(slept) == WRITE_PATIENCE_SECONDS / 10 - 1


def test_what_has_no_api_server_behind_it_is_not_waited_for() -> None:
    class Broken(StateStore):
        def set(self, key: str, value: Any, **retention: Any) -> None:
            raise EOFError("Request socket closed")

    waiting, slept = patient(Broken(None, times=0))
    with pytest.raises(EOFError):
        waiting.set("imagen/journal/0", "facts")

    assert slept == []
