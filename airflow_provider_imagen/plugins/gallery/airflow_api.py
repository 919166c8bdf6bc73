"""
An in-process client of Airflow's public REST API, with the visitor's permissions.

It calls the application that the gallery is mounted in, with the session of the incoming request. So the gallery cannot
show anything that the visitor may not read, and depends only on Airflow's documented API: no database models, no
private routes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx
from fastapi import HTTPException

from airflow_provider_imagen.links.gallery_urls import AIRFLOW_APP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

_SESSION_HEADERS: Final = ("authorization", "cookie")
_PAGE_SIZE: Final = 100
"""Entries per page; Airflow caps them at ``[api] maximum_page_limit``, 100 by default."""

_MAX_ENTRIES: Final = 10_000
_REJECTED_IDS: Final = ("", "~", ".", "..")


@dataclass(frozen=True, order=True)
class TaskInstance:
    """The ids of one task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True)
class XCom:
    """
    An XCom of a task.

    :param value: decoded value; ``None`` if it cannot be read
    :param timestamp: time of writing, as Airflow's API formats it
    :param is_elsewhere: whether an XCom backend keeps the value outside the database, so that the API lacks it
    """

    value: Any
    timestamp: str
    is_elsewhere: bool = False


class AirflowApi:
    """
    Airflow's REST API, called with the session of one visitor.

    :param request: the incoming request
    """

    def __init__(self, request: Request) -> None:
        headers = {name: value for name in _SESSION_HEADERS if (value := request.headers.get(name)) is not None}
        transport = httpx.ASGITransport(app=request.scope[AIRFLOW_APP], client=("gallery", 0))
        self._client = httpx.AsyncClient(
            transport=transport, base_url=str(request.url.replace(path="/", query="")), headers=headers, trust_env=False
        )

    async def __aenter__(self) -> AirflowApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get_xcom(self, ti: TaskInstance, key: str) -> XCom | None:
        """Return one XCom, or ``None`` if it does not exist."""
        entry = await self._get(f"{_path(ti)}/xcomEntries/{_quote_id(key)}", map_index=ti.map_index)
        if entry is None:
            return None
        value, is_elsewhere = _decode(entry.get("value"))
        return XCom(value=value, timestamp=str(entry.get("timestamp")), is_elsewhere=is_elsewhere)

    async def iter_xcoms(
        self, *, dag_id: str, run_id: str | None, key: str, newest_first: bool = False, limit: int = _MAX_ENTRIES
    ) -> AsyncIterator[tuple[TaskInstance, str]]:
        """
        Yield the task instances that have an XCom with a key, each with its timestamp.

        :param run_id: run to search; ``None`` for all runs of the DAG
        :param newest_first: order by time; default: by task
        :param limit: number of entries to read before stopping, rounded up to a page
        """
        run = "~" if run_id is None else _quote_id(run_id)
        path = f"/dags/{_quote_id(dag_id)}/dagRuns/{run}/taskInstances/~/xcomEntries"
        order = "-timestamp" if newest_first else "task_id"
        offset = 0
        while offset < limit:
            # Airflow 3.3 can filter by the exact key; on older versions, the pattern narrows down the results.
            page = await self._get(
                path, xcom_key=key, xcom_key_pattern=key, order_by=order, limit=_PAGE_SIZE, offset=offset
            )
            entries = page["xcom_entries"] if page else []
            for entry in entries:
                if entry["key"] == key:
                    ti = TaskInstance(entry["dag_id"], entry["run_id"], entry["task_id"], entry["map_index"])
                    yield ti, str(entry["timestamp"])
            offset += len(entries)
            if not entries or page is None or offset >= page["total_entries"]:
                return

    async def get_state(self, ti: TaskInstance) -> str | None:
        """Return the state of a task instance; ``None`` if it does not exist or has none."""
        path = _path(ti) if ti.map_index < 0 else f"{_path(ti)}/{ti.map_index}"
        found = await self._get(path)
        return found.get("state") if found else None

    async def list_active_runs(self, dag_id: str) -> set[str]:
        """Return the ids of a DAG's queued and running runs, possibly not all."""
        path = f"/dags/{_quote_id(dag_id)}/dagRuns"
        page = await self._get(path, state=["queued", "running"], order_by="-run_after", limit=_PAGE_SIZE)
        return {run["dag_run_id"] for run in page["dag_runs"]} if page else set()

    async def get_run(self, *, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """Return a DAG run as Airflow's API describes it; ``None`` if it does not exist."""
        return await self._get(f"/dags/{_quote_id(dag_id)}/dagRuns/{_quote_id(run_id)}")

    async def _get(self, path: str, **query: Any) -> dict[str, Any] | None:
        response = await self._client.get(f"/api/v2{path}", params=query)
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise HTTPException(response.status_code if response.status_code in (401, 403) else 502)
        body = response.json()
        return body if isinstance(body, dict) else None


def _path(ti: TaskInstance) -> str:
    return f"/dags/{_quote_id(ti.dag_id)}/dagRuns/{_quote_id(ti.run_id)}/taskInstances/{_quote_id(ti.task_id)}"


def _quote_id(name: str) -> str:
    """
    Return an id quoted for a path.

    Ids that would change the route are rejected: ``~`` means "all", and dots and slashes lead elsewhere.

    :raises HTTPException: 404, for such an id
    """
    if name in _REJECTED_IDS or not {"/", "\\", "\0"}.isdisjoint(name):  # databases reject NUL
        raise HTTPException(404)
    return quote(name, safe="")


def _decode(value: Any) -> tuple[Any, bool]:
    """Return an XCom's decoded value, and whether an XCom backend keeps the real value elsewhere."""
    if not isinstance(value, str):
        return value, False
    try:
        return json.loads(value), False
    except ValueError:
        return None, True
