"""
An in-process client of Airflow's public REST API, with the visitor's permissions.

It calls the application that the gallery is mounted in, with the session of the incoming request. So the gallery cannot
show anything that the visitor may not read, and depends only on Airflow's documented API: no database models, no
private routes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx
from fastapi import HTTPException

from airflow_provider_imagen._compat import HAS_SORTED_XCOMS
from airflow_provider_imagen.links.gallery_urls import AIRFLOW_APP
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from fastapi import Request

_SESSION_HEADERS: Final = ("authorization", "cookie")
_PAGE_SIZE: Final = 100
"""Entries per page; Airflow caps them at ``[api] maximum_page_limit``, 100 by default."""

MAX_TASK_INSTANCES: Final = 10_000
"""About the maximum number of task instances of a run that are listed, and of their XComs; one page more is read."""

_CUT_PREFIX: Final = "Truncated. You can change this behaviour in "
_REJECTED_IDS: Final = ("", "~", ".", "..")

WAITING_STATES: Final = ("awaiting_input", "deferred")
"""States of a human-in-the-loop task that waits for an answer: since Airflow 3.3, and before."""

HUMAN_OPERATORS: Final = frozenset({"ApprovalOperator", "HITLBranchOperator", "HITLEntryOperator", "HITLOperator"})
"""Class names of Airflow's human-in-the-loop operators."""

OPERATORS: Final = frozenset({"ImagenGenerateOperator", "_ImagenDecoratedOperator"})
"""Class names of this provider's operators."""

_TEMPLATE_FIELDS: Final = frozenset(ImagenGenerateOperator.template_fields)
"""All of these are template fields of a subclass, too; Airflow's API does not tell what a class is derived from."""


@dataclass(frozen=True, order=True)
class TaskInstance:
    """The ids of one task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True)
class TaskEvent:
    """
    Something that happened to a task instance: it published an XCom, or it failed.

    :param timestamp: when, as Airflow's API formats it
    """

    ti: TaskInstance
    timestamp: str

    @property
    def at(self) -> datetime:
        """When it happened, with time zone."""
        return datetime.fromisoformat(self.timestamp)


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


@dataclass(frozen=True)
class DagRun:
    """
    A DAG run.

    :param state: ``queued``, ``running``, ``success`` or ``failed``
    :param date: its logical date or, if it has none, the time after which it may run, in ISO 8601
    :param started: in ISO 8601; ``None`` before it starts
    :param seconds: how long it took; ``None`` until it has ended
    """

    dag_id: str
    run_id: str
    state: str
    date: str | None
    started: str | None
    seconds: float | None

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class TaskStatus:
    """
    The state of a task instance.

    :param state: as Airflow names it; ``none`` before it is scheduled
    :param started: when its latest attempt started, in ISO 8601; ``None`` before the first
    :param seconds: how long its latest attempt took; ``None`` until it has ended
    :param label: the label of a mapped instance, as Airflow's pages show it; empty if it is not mapped
    :param prompt: its prompt if it has just one, as rendered; ``None`` if its templates have not been rendered
    :param name: the name of that prompt
    :param model: the model requested for it, as rendered; ``None`` if it is the connection's or the default
    """

    ti: TaskInstance
    state: str
    started: str | None = None
    seconds: float | None = None
    label: str = ""
    prompt: str | None = None
    name: str | None = None
    model: str | None = None

    @property
    def title(self) -> str:
        """The id of its task and, if it is mapped, its label."""
        return f"{self.ti.task_id} {self.label}".strip()

    @property
    def has_failed(self) -> bool:
        """Whether the latest attempt has failed, or the task cannot run because another one has failed."""
        return self.state in ("failed", "upstream_failed", "up_for_retry")

    @property
    def is_finished(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ("success", "failed", "upstream_failed", "skipped", "removed")


@dataclass(frozen=True)
class Question:
    """
    What a human-in-the-loop task asks.

    :param instance_id: Airflow's id of the task instance, which changes when the task is cleared
    :param state: the state of the task instance
    :param params: the form's params by name, each a mapping with ``value`` and ``schema``
    :param assigned_to: names of the only people who may answer; empty for all with the permission
    :param is_answered: whether a person has answered, or the default was taken at the timeout
    :param answered_by: name of the person who answered; ``None`` if nobody has
    :param answered_at: in ISO 8601; ``None`` before that
    :param params_input: the answer, by param
    :param label: the label of a mapped instance, as Airflow's pages show it; empty if it is not mapped
    """

    ti: TaskInstance
    instance_id: str
    state: str
    subject: str
    params: Mapping[str, Any] = field(default_factory=dict)
    assigned_to: tuple[str, ...] = ()
    is_answered: bool = False
    answered_by: str | None = None
    answered_at: str | None = None
    params_input: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def title(self) -> str:
        """The id of its task and, if it is mapped, its label."""
        return f"{self.ti.task_id} {self.label}".strip()

    @property
    def is_open(self) -> bool:
        """Whether the task waits for an answer, or is about to: it asks before it starts to wait."""
        return self.state in ("running", *WAITING_STATES) and not self.is_answered


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

    async def list_xcoms(self, *, dag_id: str, run_id: str, key: str) -> dict[TaskInstance, str]:
        """Return the task instances of a run that have an XCom with a key, each with the XCom's timestamp."""
        path = f"/dags/{_quote_id(dag_id)}/dagRuns/{_quote_id(run_id)}/taskInstances/~/xcomEntries"
        # The pattern also matches longer keys, and not every version can filter by the exact key.
        entries = self._pages(path, "xcom_entries", limit=MAX_TASK_INSTANCES + 1, xcom_key=key, xcom_key_pattern=key)
        return {
            TaskInstance(entry["dag_id"], entry["run_id"], entry["task_id"], entry["map_index"]): entry["timestamp"]
            async for entry in entries
            if entry["key"] == key
        }

    async def list_published(self, key: str, *, since: datetime, limit: int) -> list[TaskEvent]:
        """
        Return the task instances of all readable DAGs that have published an XCom since a moment, the latest first.

        Before Airflow 3.2, which can sort XComs, only those of runs that were due since then.

        :param limit: about how many XComs to look at
        """
        query = {"order_by": "-timestamp"} if HAS_SORTED_XCOMS else {"run_after_gte": since.isoformat()}
        entries = self._pages(
            "/dags/~/dagRuns/~/taskInstances/~/xcomEntries",
            "xcom_entries",
            limit=limit,
            xcom_key=key,
            xcom_key_pattern=key,
            **query,
        )
        found: dict[TaskInstance, TaskEvent] = {}  # the pages shift when an XCom is published meanwhile
        async for entry in entries:
            ti = TaskInstance(entry["dag_id"], entry["run_id"], entry["task_id"], entry["map_index"])
            event = TaskEvent(ti, entry["timestamp"])
            if event.at >= since and entry["key"] == key:
                found.setdefault(ti, event)
            elif event.at < since and HAS_SORTED_XCOMS:
                break
        return sorted(found.values(), key=lambda event: event.at, reverse=True)

    async def list_failed(self, operators: Iterable[str], *, since: datetime, limit: int) -> list[TaskEvent]:
        """
        Return the task instances of all readable DAGs whose last attempt has failed since a moment, the latest first.

        :param operators: class names of their operators; none for those of all operators
        :param limit: about how many to return
        """
        entries = self._pages(
            "/dags/~/dagRuns/~/taskInstances",
            "task_instances",
            limit=limit,
            operator=sorted(operators),
            state="failed",
            end_date_gte=since.isoformat(),
            order_by="-end_date",
        )
        found = [TaskEvent(_read_status(entry).ti, entry["end_date"]) async for entry in entries]
        return list({event.ti: event for event in reversed(found)}.values())[::-1]

    async def list_operators(self, dag_id: str) -> frozenset[str]:
        """Return the class names of this provider's operators, subclasses in a DAG included."""
        listed = await self._get(f"/dags/{_quote_id(dag_id)}/tasks")
        return OPERATORS | {
            task["class_ref"]["class_name"]
            for task in (listed or {}).get("tasks", ())
            if set(task["template_fields"] or ()) >= _TEMPLATE_FIELDS and task["class_ref"]
        }

    async def list_task_instances(self, *, dag_id: str, run_id: str, operators: Iterable[str] = ()) -> list[TaskStatus]:
        """
        Return the task instances of a run, in any order.

        :param operators: class names of their operators; none for all task instances
        """
        path = f"/dags/{_quote_id(dag_id)}/dagRuns/{_quote_id(run_id)}/taskInstances"
        entries = self._pages(path, "task_instances", limit=MAX_TASK_INSTANCES + 1, operator=sorted(operators))
        return [_read_status(entry) async for entry in entries]

    async def get_status(self, ti: TaskInstance) -> TaskStatus | None:
        """Return the state of a task instance; ``None`` if it does not exist."""
        found = await self._get(_path(ti) if ti.map_index < 0 else f"{_path(ti)}/{ti.map_index}")
        return _read_status(found) if found else None

    async def get_question(self, ti: TaskInstance) -> Question | None:
        """Return what a human-in-the-loop task asks; ``None`` if it has not asked anything or does not exist."""
        found = await self._get(f"{_path(ti)}/{ti.map_index}/hitlDetails")
        return _read_question(ti, found) if found else None

    async def get_run(self, *, dag_id: str, run_id: str) -> DagRun | None:
        """Return a DAG run; ``None`` if it does not exist."""
        found = await self._get(f"/dags/{_quote_id(dag_id)}/dagRuns/{_quote_id(run_id)}")
        return _read_run(found) if found else None

    async def list_runs(self, dag_id: str, *, offset: int, limit: int) -> tuple[list[DagRun], int] | None:
        """Return some runs of a DAG, the latest first, and the number of all its runs; ``None`` if there is no DAG."""
        page = await self._get(f"/dags/{_quote_id(dag_id)}/dagRuns", order_by="-run_after", offset=offset, limit=limit)
        return ([_read_run(entry) for entry in page["dag_runs"]], page["total_entries"]) if page else None

    async def _pages(self, path: str, name: str, *, limit: int, **query: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the entries of a list, page by page, until about ``limit`` of them; none if there is no such list."""
        offset = 0
        while offset < limit:
            page = await self._get(path, limit=_PAGE_SIZE, offset=offset, **query)
            entries = page[name] if page else []
            for entry in entries:
                yield entry
            offset += len(entries)
            if not entries or page is None or offset >= page["total_entries"]:
                return

    async def _get(self, path: str, **query: Any) -> dict[str, Any] | None:
        response = await self._client.get(f"/api/v2{path}", params=query)
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise HTTPException(response.status_code if response.status_code in (401, 403) else 502)
        body = response.json()
        return body if isinstance(body, dict) else None


def _read_run(entry: Mapping[str, Any]) -> DagRun:
    return DagRun(
        dag_id=entry["dag_id"],
        run_id=entry["dag_run_id"],
        state=entry["state"],
        date=entry["logical_date"] or entry["run_after"],
        started=entry["start_date"],
        seconds=entry["duration"] if entry["end_date"] else None,
    )


def _read_status(entry: Mapping[str, Any]) -> TaskStatus:
    ti = TaskInstance(entry["dag_id"], entry["dag_run_id"], entry["task_id"], entry["map_index"])
    rendered = entry.get("rendered_fields") or {}
    item = _read_only_item(rendered.get("prompt"))
    model = item.get("model", rendered.get("model"))
    return TaskStatus(
        ti=ti,
        state=entry["state"] or "none",
        started=entry["start_date"],
        seconds=entry["duration"] if entry["end_date"] else None,
        label=_label(ti, entry),
        prompt=_text(item.get("prompt")),
        name=_text(item.get("name")),
        model=_text(model),
    )


def _label(ti: TaskInstance, entry: Mapping[str, Any]) -> str:
    """Return the label of a mapped task instance, as Airflow's pages show it; empty if it is not mapped."""
    if ti.map_index < 0:
        return ""
    label = entry["rendered_map_index"]
    return f"[{ti.map_index}]" if label in (None, "", str(ti.map_index)) else label


def _read_question(ti: TaskInstance, entry: Mapping[str, Any]) -> Question:
    person = entry.get("responded_by_user") or {}
    return Question(
        ti=ti,
        instance_id=entry["task_instance"]["id"],
        state=entry["task_instance"]["state"] or "none",
        subject=entry["subject"],
        params=entry["params"],
        assigned_to=tuple(user["name"] for user in entry.get("assigned_users") or ()),
        is_answered=entry["response_received"],
        answered_by=person.get("name"),
        answered_at=entry["responded_at"],
        params_input=entry["params_input"] or {},
        label=_label(ti, entry["task_instance"]),
    )


def _read_only_item(rendered: Any) -> dict[str, Any]:
    """
    Return the item of a rendered argument ``prompt`` that has just one; otherwise nothing.

    Of one longer than ``[core] max_templated_field_length``, Airflow keeps only a part, as text.
    """
    if _is_cut(rendered):
        return {"model": None}
    if isinstance(rendered, list) and len(rendered) == 1:
        (rendered,) = rendered
    return rendered if isinstance(rendered, dict) else {"prompt": rendered}


def _is_cut(rendered: Any) -> bool:
    """Return whether a rendered field begins like those that Airflow has shortened."""
    return isinstance(rendered, str) and rendered.startswith(_CUT_PREFIX)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and not _is_cut(value) else None


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
