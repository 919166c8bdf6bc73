"""
Client request ids, which name the DAG and the task, so that the API's log can be read by DAG. Pure.

``imagen:<dag>:<task>:<request>:<random>``, at most 128 characters of ``A-Za-z0-9._:-`` (docs, request tracing,
2026-08-21). Neither DAG nor task ids contain a colon. Only people and bills read the names: an id is compared as a
whole, so ids of earlier versions, ``imagen.<request>.<random>``, remain valid.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

from msgspec import Struct

HOOK_REQUEST: Final = "hook"
"""Stands for the request in ids of ``ImagenHook.generate_images``, whose images are recorded in no folder."""

_MAX_CHARACTERS: Final = 128
_REQUEST_CHARACTERS: Final = 20
_RANDOM_BYTES: Final = 8
_NAMES_CHARACTERS: Final = _MAX_CHARACTERS - len("imagen::::") - _REQUEST_CHARACTERS - 2 * _RANDOM_BYTES
_DIGEST_CHARACTERS: Final = 6
_FORMAT: Final = re.compile(r"imagen:([\w.-]*):([\w.-]*):([a-z0-9]+):[0-9a-f]{16}", re.ASCII)
_OLD_FORMAT: Final = re.compile(r"imagen\.([a-z0-9]+)\.[0-9a-f]{16}")


class RequestSource(Struct, frozen=True):
    """
    What a client request id says about its request.

    :param dag_id: id of the DAG, shortened if necessary; ``None`` outside a task, and in ids of earlier versions
    :param task_id: id of the task, likewise
    :param is_hook: whether ``ImagenHook.generate_images`` sent the request
    """

    dag_id: str | None
    task_id: str | None
    is_hook: bool


def new_client_request_id(*, dag_id: str, task_id: str, request: str) -> str:
    """
    Return a new, unique client request id.

    Characters other than ``A-Za-z0-9._-`` become ``_``, and long ids lose their middle. Names changed in one of these
    ways contain six digits of a hash, so that no two look the same for practical purposes.

    :param dag_id: id of the DAG; empty outside a task
    :param task_id: id of the task; empty outside a task
    :param request: the request's fingerprint of 20 hex digits, or :data:`HOOK_REQUEST`
    """
    dag, task = readable_names(dag_id, task_id)
    return f"imagen:{dag}:{task}:{request}:{secrets.token_hex(_RANDOM_BYTES)}"


def read_client_request_id(text: str | None) -> RequestSource | None:
    """Return what an id says about its request; ``None`` if this package did not create it."""
    if found := _FORMAT.fullmatch(text or ""):
        dag, task, request = found.groups()
        return RequestSource(dag or None, task or None, request == HOOK_REQUEST)
    if found := _OLD_FORMAT.fullmatch(text or ""):
        return RequestSource(None, None, found[1] == HOOK_REQUEST)
    return None


def readable_names(dag_id: str, task_id: str) -> tuple[str, str]:
    """Return a DAG id and a task id as they appear in client request ids: the shorter one leaves room for the other."""
    half = _NAMES_CHARACTERS // 2
    task = _readable(task_id, max(half, _NAMES_CHARACTERS - len(_readable(dag_id, _NAMES_CHARACTERS))))
    return _readable(dag_id, _NAMES_CHARACTERS - len(task)), task


def _readable(name: str, limit: int) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if cleaned == name and len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    room = limit - len(f"..{digest}..")
    if len(cleaned) <= room:
        return f"{cleaned}..{digest}"
    return f"{cleaned[: room - room // 2]}..{digest}..{cleaned[len(cleaned) - room // 2 :]}"
