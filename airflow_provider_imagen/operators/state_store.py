"""Airflow's task state store, as a journal needs it: one call at a time, with outages kept apart from rejections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_imagen.journal.log import StoreUnavailableError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from airflow_provider_imagen.journal.stores import StateStore

T = TypeVar("T")


class AirflowStateStore:
    """
    Airflow's task state store.

    :param store: the task's own store
    :param airflow_lock: held while Airflow is called; ``airflow tasks test`` cannot take two calls at once
    """

    def __init__(self, store: StateStore, airflow_lock: threading.RLock) -> None:
        self._store = store
        self._lock = airflow_lock

    def get(self, key: str, default: Any = None) -> Any:
        """
        Return the value of a key.

        :raises StoreUnavailableError: the API server or its database is away
        """
        return self._call(lambda: self._store.get(key, default))

    def set(self, key: str, value: Any, **retention: Any) -> None:
        """
        Write the value of a key, durable on return.

        :raises StoreUnavailableError: the API server or its database is away
        """
        self._call(lambda: self._store.set(key, value, **retention))

    def delete(self, key: str) -> None:
        """Remove a key."""
        self._call(lambda: self._store.delete(key))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            with self._lock:
                return call()
        except Exception as error:
            if _is_away(error):
                raise StoreUnavailableError(str(error)) from error
            raise


def _is_away(error: Exception) -> bool:
    """Return whether the API server or its database is unavailable, rather than the call rejected."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    if not isinstance(error, AirflowRuntimeError):
        # Without a supervisor, in airflow tasks test, the client's own error comes through.
        status = getattr(getattr(error, "response", None), "status_code", None)
        return isinstance(status, int) and status >= 500
    detail = error.error.detail or {}
    status = detail.get("status_code")
    return status >= 500 if isinstance(status, int) else "exception_type" in detail
