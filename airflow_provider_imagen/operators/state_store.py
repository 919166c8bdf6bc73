"""Adapter of Airflow's task state store for the journal: serializes calls, distinguishes outages from rejections."""

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
    Airflow's task state store, one call at a time.

    :param store: the store of this task instance
    :param airflow_lock: held during calls to Airflow; ``airflow tasks test`` cannot handle concurrent ones
    """

    def __init__(self, store: StateStore, airflow_lock: threading.RLock) -> None:
        self._store = store
        self._lock = airflow_lock

    def get(self, key: str, default: Any = None) -> Any:
        """
        Return the value of a key.

        :raises StoreUnavailableError: the API server or its database is unavailable
        """
        return self._call(lambda: self._store.get(key, default))

    def set(self, key: str, value: Any, **retention: Any) -> None:
        """
        Store the value of a key; durable on return.

        :raises StoreUnavailableError: the API server or its database is unavailable
        """
        self._call(lambda: self._store.set(key, value, **retention))

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._call(lambda: self._store.delete(key))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            with self._lock:
                return call()
        except Exception as error:
            if _is_unavailable(error):
                raise StoreUnavailableError(str(error)) from error
            raise


def _is_unavailable(error: Exception) -> bool:
    """Return whether the API server or its database is unavailable, rather than rejecting the call."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    if not isinstance(error, AirflowRuntimeError):
        # Without a supervisor, as in airflow tasks test, the HTTP client's own error is raised.
        status = getattr(getattr(error, "response", None), "status_code", None)
        return isinstance(status, int) and status >= 500
    detail = error.error.detail or {}
    status = detail.get("status_code")
    return status >= 500 if isinstance(status, int) else "exception_type" in detail
