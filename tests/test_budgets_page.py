"""The page about budgets shows what the commands print and the errors say."""

from __future__ import annotations

import json
import re
import shlex
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import Connection

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.exceptions import ImagenError, ServerError
from airflow_provider_imagen.hooks.connection import usage_caps
from airflow_provider_imagen.run.usage_caps import UsageCap, read_limit

if TYPE_CHECKING:
    from datetime import datetime

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "budgets.md").read_text("utf-8")


def _shown(mark: str) -> list[str]:
    return re.findall(rf"^<!-- {mark} -->\n```\w+\n(.+?)\n```$", PAGE, re.M | re.S)


def _lines(text: str) -> list[str]:
    """Return the non-empty lines, stripped, without the lengths of rules and gaps."""
    return [re.sub(r"─+", "─", " ".join(line.split())) for line in text.splitlines() if line.strip()]


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize("shown", _shown("quote"))
def test_a_quote_prints_what_the_page_shows(
    shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command, output = shown.split("\n", 1)
    assert main(shlex.split(command.removeprefix("$ airflow-imagen "))) == 0
    assert _lines(capsys.readouterr().out) == _lines(output)


def test_the_connection_on_the_page_has_both_caps() -> None:
    (shown,) = _shown("connection")
    (assignment,) = [word for word in shlex.split(shown) if word.startswith("AIRFLOW_CONN_IMAGEN_DEFAULT=")]
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
    exceeded, unreadable = _shown("error")
    cap = UsageCap("day", Decimal(20))
    error = read_limit(cap, _Api(Decimal("19.95"))).exceeded(
        Decimal(0), ", and the remaining requests cost about $0.126. Nothing was sent."
    )
    date = r"\d{4}-\d\d-\d\d"
    assert re.sub(date, "DATE", str(error)) == re.sub(date, "DATE", exceeded)
    with pytest.raises(ImagenError) as caught:
        read_limit(cap, _Api(ServerError("The API failed (503).", status=503)))
    assert str(caught.value) == unreadable
