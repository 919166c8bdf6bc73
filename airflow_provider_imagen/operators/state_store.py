"""Airflow's task state store, with writes that wait until the API server is back."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.journal.stores import StateStore

log = logging.getLogger(__name__)

WRITE_PATIENCE_SECONDS = 120.0
"""
How long a write waits for an API server or database that is away.

Airflow itself tries for about ten seconds (``[workers] execution_api_retries``). An API server needs longer to restart,
and an answer that cannot be written down is lost with its task. Airflow ends a task whose heartbeats fail sooner than
this (``[workers] max_failed_heartbeats``), unless it is told to wait.
"""

_PAUSE_SECONDS = 1.0


class PatientStateStore:
    """
    Airflow's task state store, whose writes wait until the API server is back.

    Only writes do: a read that fails costs a try, a write that fails costs the pictures that were just answered.

    :param store: the task's own store
    :param sleep: waits between two tries
    :param now: seconds of a clock that only goes forward
    """

    def __init__(
        self,
        store: StateStore,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._sleep = sleep
        self._now = now

    def get(self, key: str, default: Any = None) -> Any:
        """Give the value of a key."""
        return self._store.get(key, default)

    def set(self, key: str, value: Any, **retention: Any) -> None:
        """Write the value of a key, durable on return."""
        give_up_at = self._now() + WRITE_PATIENCE_SECONDS
        has_failed = False
        while True:
            try:
                self._store.set(key, value, **retention)
            except Exception as error:
                if not _is_away(error) or self._now() >= give_up_at:
                    raise
                if not has_failed:
                    log.warning("Airflow's API server does not take the journal in (%s); buying waits for it.", error)
                has_failed = True
                self._sleep(_PAUSE_SECONDS)
            else:
                return

    def delete(self, key: str) -> None:
        """Remove a key."""
        self._store.delete(key)


def _is_away(error: Exception) -> bool:
    """Tell an API server that is away, or whose database is, from one that refuses: the task may be over for it."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    if not isinstance(error, AirflowRuntimeError):
        return False
    detail = error.error.detail or {}
    status = detail.get("status_code")
    return status >= 500 if isinstance(status, int) else "exception_type" in detail
