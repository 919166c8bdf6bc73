"""The differences between the Airflow versions this package runs on (3.1 to 3.3), all in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION  # the only place it has, in all versions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from airflow.sdk import ObjectStoragePath

try:  # 3.2
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
except ImportError:  # 3.1
    from airflow.exceptions import AirflowFailException, AirflowSkipException  # type: ignore[no-redef]

try:  # 3.3
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

    HAS_RETRY_POLICY = True
except ImportError:  # 3.1, 3.2: tasks have no retry policy
    RetryDecision = None  # type: ignore[assignment,misc]
    RetryPolicy = object  # type: ignore[assignment,misc]

    HAS_RETRY_POLICY = False


def determine_kwargs(function: Callable[..., Any], args: Collection[Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Choose from a context what a function takes; what does it is loaded with the first decorator, not with us."""
    try:
        from airflow.sdk.bases.decorator import determine_kwargs as choose
    except ImportError:  # 3.1
        from airflow.utils.operator_helpers import determine_kwargs as choose  # type: ignore[attr-defined]
    return dict(choose(function, args, context))


def never_expire() -> dict[str, Any]:
    """Keyword arguments that keep an entry of the task state store until it is deleted."""
    try:
        from airflow.sdk.execution_time.context import NEVER_EXPIRE
    except ImportError:
        return {}
    return {"retention": NEVER_EXPIRE}


def get_metrics() -> Any:
    """Return Airflow's metrics client; it does nothing unless the deployment has metrics on."""
    try:
        from airflow.sdk.observability import stats
    except ImportError:  # 3.1
        from airflow.stats import Stats

        return Stats
    return stats if hasattr(stats, "incr") else stats.Stats  # functions since 3.3, a class in 3.2


def get_dag_bag() -> tuple[Any, Any]:
    """Return the class that loads DAG files, and the function that makes what it loaded known to the database."""
    try:
        from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    except ImportError:  # 3.1
        from airflow.models.dagbag import DagBag, sync_bag_to_db  # type: ignore[no-redef]
    return DagBag, sync_bag_to_db


def open_path(address: str) -> ObjectStoragePath:
    """
    Open a path, given as a URL.

    :raises ValueError: nothing is known that speaks to such a store. By itself Airflow 3.1 says so only when the path
        is used
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
    "AirflowSkipException",
    "RetryDecision",
    "RetryPolicy",
    "determine_kwargs",
    "get_dag_bag",
    "get_metrics",
    "never_expire",
    "open_path",
]
