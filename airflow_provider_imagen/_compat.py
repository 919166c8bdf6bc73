"""Compatibility with all supported Airflow versions (3.1 to 3.3)."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION  # not public in any version

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from airflow.sdk import ObjectStoragePath

try:  # 3.2
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSkipException,
        ParamValidationError,
    )
except ImportError:  # 3.1
    from airflow.exceptions import (  # type: ignore[attr-defined,no-redef]
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSkipException,
        ParamValidationError,
    )

try:  # 3.3
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

    HAS_RETRY_POLICY = True
except ImportError:  # 3.1, 3.2: tasks have no retry policy
    RetryDecision = None  # type: ignore[assignment,misc]
    RetryPolicy = object  # type: ignore[assignment,misc]

    HAS_RETRY_POLICY = False

HAS_SORTED_XCOMS = not airflow_version.startswith("3.1.")
"""Whether Airflow's API can sort XComs (3.2)."""


GRACE_SECONDS = 60.0
"""
Default wait for requests in flight when a task is cancelled, because they are already paid for.

Longer than most models take to respond, and longer than Kubernetes' default termination grace period (30 s). After an
``execution_timeout``, which sends no SIGKILL, only this limits the wait. A SIGKILL ends it sooner, but the results so
far are published by then.
"""


LOCK_TIMEOUT_SECONDS = 5.0


def determine_kwargs(function: Callable[..., Any], args: Collection[Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that a function takes from a context; imports Airflow's helper on first use."""
    try:
        from airflow.sdk.bases.decorator import determine_kwargs as choose
    except ImportError:  # 3.1
        from airflow.utils.operator_helpers import determine_kwargs as choose  # type: ignore[attr-defined]
    return dict(choose(function, args, context))


def redact_secrets(text: str) -> str:
    """Return the text with the secrets redacted that Airflow redacts in task logs."""
    from airflow.sdk.log import redact  # type: ignore[attr-defined]

    return str(redact(text))


def never_expire() -> dict[str, Any]:
    """Return the keyword arguments that keep a task state store entry until it is deleted."""
    try:
        from airflow.sdk.execution_time.context import NEVER_EXPIRE
    except ImportError:
        return {}
    return {"retention": NEVER_EXPIRE}


class DatabaseStateStore:
    """
    The task state store of one task instance, read from Airflow's database by commands outside a task (Airflow 3.3).

    :param map_index: -1 if the task is not mapped
    :raises ValueError: this Airflow has no task state store
    """

    def __init__(self, *, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        try:
            from airflow.state import TaskScope, get_state_backend
        except ImportError:
            raise ValueError("This Airflow has no task state store; name the output folder instead.") from None
        self._backend = get_state_backend()
        self._scope = TaskScope(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key."""
        value = self._backend.get(self._scope, key)
        return default if value is None else json.loads(value)

    def set(self, key: str, value: Any, **_: Any) -> None:
        """Store the value of a key."""
        self._backend.set(self._scope, key, json.dumps(value))

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._backend.delete(self._scope, key)


@contextmanager
def machine_lock() -> Iterator[None]:
    """Hold a lock shared by this user's processes on this machine; proceed without it after 5 s or on failure."""
    path = Path(tempfile.gettempdir(), f"airflow-provider-imagen-{os.getuid()}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # owned by another user, or the disk is not writable
        yield
        return
    try:
        give_up_at = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while time.monotonic() < give_up_at:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.01)
            else:
                break
        yield
    finally:
        os.close(descriptor)


def has_supervisor() -> bool:
    """Return whether a supervisor is this task process's parent; false in ``airflow tasks test``."""
    from airflow.sdk.execution_time import task_runner

    return type(getattr(task_runner, "SUPERVISOR_COMMS", None)).__name__ == "CommsDecoder"


def get_grace_seconds() -> float:
    """Return ``[imagen] grace_seconds``: how long requests in flight may continue once a task is cancelled."""
    return max(0.0, float(_configuration().getfloat("imagen", "grace_seconds", fallback=GRACE_SECONDS)))


def get_allowed_download_hosts() -> list[str]:
    """Return ``[imagen] allowed_download_hosts``: hosts in private networks that images may be downloaded from."""
    listed = _configuration().get("imagen", "allowed_download_hosts", fallback="") or ""
    return [entry for entry in map(str.strip, listed.split(",")) if entry]


def _configuration() -> Any:
    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # 3.1
        from airflow.configuration import conf
    return conf


def get_input_roots() -> list[str]:
    """Return ``[imagen] input_roots``: the folders that stored input images must be in; empty allows all."""
    text = str(_configuration().get("imagen", "input_roots", fallback="") or "")
    return [root.strip() for root in text.replace("\n", ",").split(",") if root.strip()]


def get_metrics() -> Any:
    """Return Airflow's metrics client; a no-op unless the deployment has metrics enabled."""
    try:
        from airflow.sdk.observability import stats
    except ImportError:  # 3.1
        from airflow.stats import Stats

        return Stats
    return stats if hasattr(stats, "incr") else stats.Stats  # functions since 3.3, a class in 3.2


def get_dag_bag() -> tuple[Any, Any]:
    """Return the ``DagBag`` class, and the function that writes a bag's DAGs to the database."""
    try:
        from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    except ImportError:  # 3.1
        from airflow.models.dagbag import DagBag, sync_bag_to_db  # type: ignore[no-redef]
    return DagBag, sync_bag_to_db


def open_path(address: str) -> ObjectStoragePath:
    """
    Return the path for a URL.

    :raises ValueError: no installed provider supports the scheme; Airflow 3.1 itself raises only on first use
    """
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.io.fs import has_fs
    from fsspec import available_protocols

    scheme = address.partition("://")[0]
    path = ObjectStoragePath(address)
    if not has_fs(scheme) and scheme not in available_protocols():
        raise ValueError(f"Unsupported filesystem: {scheme!r}")
    return path


__all__ = [
    "HAS_RETRY_POLICY",
    "SET_DURING_EXECUTION",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSkipException",
    "DatabaseStateStore",
    "ParamValidationError",
    "RetryDecision",
    "RetryPolicy",
    "determine_kwargs",
    "get_allowed_download_hosts",
    "get_dag_bag",
    "get_grace_seconds",
    "get_input_roots",
    "get_metrics",
    "has_supervisor",
    "machine_lock",
    "never_expire",
    "open_path",
]
