"""The connection and the errors on the page about budgets; tests/test_docs.py runs its commands."""

from __future__ import annotations

import json
import re
import shlex
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import Connection
from doc_snippets import BLOCKS, shown_commands

from airflow_provider_imagen.exceptions import ImagenError, ServerError
from airflow_provider_imagen.hooks.connection import usage_caps
from airflow_provider_imagen.run.usage_caps import UsageCap, read_limit

if TYPE_CHECKING:
    from datetime import datetime


def test_the_connection_on_the_page_has_both_caps() -> None:
    _, assignment = shlex.split(shown_commands("connection: caps"))
    values = json.loads(assignment.partition("=")[2])
    caps = usage_caps(Connection(conn_id="c", conn_type="imagen", extra=json.dumps(values["extra"])))
    assert caps == (UsageCap("day", Decimal(20)), UsageCap("month", Decimal(300)))


class _Api:
    """An API with a fixed usage, or an error."""

    clock_offset_seconds = None

    def __init__(self, usage: Decimal | Exception) -> None:
        self._usage = usage

    def get_usage(self, *, start: datetime, end: datetime) -> Decimal:
        assert start < end
        if isinstance(self._usage, Exception):
            raise self._usage
        return self._usage


def test_the_errors_read_as_on_the_page() -> None:
    exceeded, unreadable = [block.text.strip() for block in BLOCKS if block.mark == "error"]
    cap = UsageCap("day", Decimal(20))
    error = read_limit(cap, _Api(Decimal("19.95"))).exceeded(
        Decimal(0), ", and the remaining requests cost about $0.126. Nothing was sent."
    )
    date = r"\d{4}-\d\d-\d\d"
    assert re.sub(date, "DATE", str(error)) == re.sub(date, "DATE", exceeded)
    with pytest.raises(ImagenError) as caught:
        read_limit(cap, _Api(ServerError("The API failed (503).", status=503)))
    assert str(caught.value) == unreadable
