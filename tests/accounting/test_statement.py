"""Statements, from logs and ledgers of any content."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.accounting import statement as statement_module
from airflow_provider_imagen.accounting.statement import Statement, read_statement
from airflow_provider_imagen.bill import Tally, subtotals, tally
from airflow_provider_imagen.exceptions import InvalidArgumentsError, UnreadableResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SINCE = datetime(2026, 11, 1, tzinfo=UTC)
OURS = "imagen:postcards:paint:0123456789abcdef0123:0123456789abcdef"


class Account:
    """A log and a ledger that are scripted; both return what falls into the window, ends included."""

    def __init__(self, *, log: tuple[Any, ...] = (), ledger: tuple[Any, ...] = (), ahead: float | None = None) -> None:
        self.log = log
        self.ledger = ledger
        self.clock_offset_seconds = ahead
        self.windows: list[tuple[datetime, datetime]] = []

    def iter_request_logs(
        self, *, start: datetime, end: datetime, wait: Callable[[float], None] | None
    ) -> Iterator[dict[str, Any]]:
        self.windows.append((start, end))
        return (row for row in self.log if start <= time_of(row.get("created"), start) <= end)

    def iter_transactions(
        self, *, start: datetime, end: datetime, wait: Callable[[float], None] | None
    ) -> Iterator[dict[str, Any]]:
        return (row for row in self.ledger if start <= time_of(row.get("created_at"), start) <= end)


def time_of(text: Any, default: datetime) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return default
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at if at.year > 1 else default


def row(number: int = 0, *, at: datetime = NOW, usd: Any = 0.04, **values: Any) -> dict[str, Any]:
    return {
        "created": at.isoformat(),
        "status": "succeeded",
        "origin": "api",
        "model": "flux/dev",
        "cost": {"usd": usd, "credits": 80_000},
        "tokens": {"input": 0, "output": 0, "total": 0},
        "request_id": f"req-{number}",
        "inference_id": f"inf-{number}",
        "client_request_id": OURS,
        **values,
    }


def entry(number: int | None = 0, *, at: datetime = NOW, usd: float = 0.04, **values: Any) -> dict[str, Any]:
    return {
        "created_at": at.isoformat(),
        "direction": "CHARGE",
        "type": "MODEL_USAGE",
        "amount": {"usd": usd, "credits": 80_000},
        "model": "flux/dev",
        "reference_id": None if number is None else f"inf-{number}",
        **values,
    }


def read(*accounts: Account, since: datetime | None = SINCE, until: datetime | None = None) -> Statement:
    readers = {f"key {number}": account for number, account in enumerate(accounts)}
    return read_statement(readers, since=since, until=until, now=NOW, wait=lambda _: None)


def test_charges_of_this_package_and_of_other_clients_are_kept_apart() -> None:
    log = (
        row(1, usd=0.042),
        row(2, usd=0.1, client_request_id="bot-1"),
        row(3, usd=0.2, client_request_id=None),
        row(4, usd=0, status="failed"),
    )
    statement = read(Account(log=log, ledger=(entry(1, usd=0.042), entry(2, usd=0.1), entry(3, usd=0.2))))

    assert statement.own == Tally(1, Decimal("0.042"))
    assert statement.others == Tally(2, Decimal("0.3"))
    assert statement.total == Tally(3, Decimal("0.342"))
    assert statement.ledger.is_equal
    assert statement.ledger.usd == Decimal("0.342")
    (item,) = statement.own_items
    assert (item.dag_id, item.task_id, item.model, item.key) == ("postcards", "paint", "flux/dev", "key 0")


def test_the_window_is_the_current_month_unless_given() -> None:
    log = (row(1, at=SINCE), row(2, at=SINCE - timedelta(seconds=1)))
    statement = read(Account(log=log), since=None)

    assert statement.since == SINCE
    assert statement.total.count == 1


def test_a_window_includes_its_start_and_not_its_end() -> None:
    until = SINCE + timedelta(days=1)
    log = (row(1, at=SINCE), row(2, at=until - timedelta(milliseconds=1)), row(3, at=until))

    assert read(Account(log=log), until=until).total.count == 2


def test_a_window_is_read_in_parts_that_the_api_allows() -> None:
    since = NOW - timedelta(days=300)
    times = [since + timedelta(days=number) for number in range(300)]
    boundaries = [NOW - timedelta(days=92 * number) + statement_module.MARGIN for number in range(1, 4)]
    log = tuple(row(number, at=at) for number, at in enumerate([*times, *boundaries]))
    account = Account(log=log)

    assert read(account, since=since).total.count == 303
    assert all(end - start <= timedelta(days=92) for start, end in account.windows)
    assert account.windows[-1][0] <= since
    assert account.windows[0][1] >= NOW


def test_a_row_on_two_pages_counts_once() -> None:
    statement = read(Account(log=(row(1), row(1), row(2)), ledger=(entry(1), entry(2))))

    assert statement.total == Tally(2, Decimal("0.08"))
    assert statement.ledger.is_equal


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"created": None},
        {"created": "yesterday"},
        {"created": "0001-01-01T00:00:00+14:00"},
        {"created": "2026-11-20T12:00:00Z" + " " * 300},
        {"cost": None},
        {"cost": {}},
        {"cost": {"usd": -1}},
        {"cost": {"usd": float("nan")}},
        {"cost": {"usd": 1e30, "credits": "1e99"}},
        {"cost": {"usd": True}},
        {"cost": {"usd": [1]}},
    ],
)
def test_rows_that_cannot_be_read_are_counted(damaged: dict[str, Any]) -> None:
    statement = read(Account(log=(row(1), {**row(2), **damaged} if damaged else {})))

    assert statement.unreadable == 1
    assert statement.total.count == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"model": None},
        {"model": 7},
        {"model": "x" * 1000},
        {"model": "\x1b[31m"},
        {"status": "pending"},
        {"status": None},
        {"inference_id": None},
        {"request_id": 5},
        {"client_request_id": ["a"]},
        {"origin": "moon"},
        {"cost": {"credits": 80_000}},
        {"cost": {"usd": "0.04"}},
        {"created": "2026-11-20T12:00:00"},
        {"created": "2026-11-20T13:00:00+01:00"},
        {"unknown": {"deeply": ["nested"]}},
    ],
)
def test_odd_values_lose_no_charge(odd: dict[str, Any]) -> None:
    statement = read(Account(log=({**row(1), **odd},)))

    assert statement.unreadable == 0
    assert statement.total == Tally(1, Decimal("0.04"))
    assert sum(each.count for each in subtotals(statement.own_items, ["model"])) == statement.own.count


def test_a_charge_without_an_entry_is_shown() -> None:
    check = read(Account(log=(row(1), row(2, inference_id=None)))).ledger

    assert check.only_in_log == Tally(2, Decimal("0.08"))
    assert not check.is_equal


def test_an_entry_without_a_charge_is_shown() -> None:
    check = read(Account(ledger=(entry(1), entry(None)))).ledger

    assert check.only_in_ledger == Tally(2, Decimal("0.08"))
    assert not check.is_equal


@pytest.mark.parametrize(("logged", "booked"), [(0.04, 0.05), (0.05, 0.04), (0.0, 0.04)])
def test_a_different_amount_is_shown(logged: float, booked: float) -> None:
    check = read(Account(log=(row(1, usd=logged),), ledger=(entry(1, usd=booked),))).ledger

    assert check.different == Tally(1, Decimal(str(booked)) - Decimal(str(logged)))
    assert not check.is_equal


def test_entries_of_one_charge_add_up() -> None:
    check = read(Account(log=(row(1, usd=0.04),), ledger=(entry(1, usd=0.03), entry(1, usd=0.01)))).ledger

    assert check.is_equal


def test_money_for_other_things_is_no_model_usage() -> None:
    ledger = (
        entry(1),
        entry(None, type="REFUND", direction="TOPUP", usd=0.5),
        entry(None, type="PAYMENT", direction="TOPUP", usd=100),
        entry(None, type="CREDITS_EXPIRED", usd=2),
        entry(None, type="SOMETHING_NEW", usd=3),
    )
    check = read(Account(log=(row(1),), ledger=ledger)).ledger

    assert check.is_equal
    assert check.usd == Decimal("0.04")
    assert check.refunds == Tally(1, Decimal("0.5"))
    assert check.other_charges == Tally(2, Decimal(5))


@pytest.mark.parametrize(
    "damaged", [{"amount": None}, {"direction": "UP"}, {"type": 1}, {"created_at": ""}, {"amount": {"usd": -1}}]
)
def test_entries_that_cannot_be_read_are_counted(damaged: dict[str, Any]) -> None:
    check = read(Account(log=(row(1),), ledger=(entry(1), {**entry(2), **damaged}))).ledger

    assert check.unreadable == 1
    assert not check.is_equal


def test_a_request_belongs_to_the_window_in_which_it_was_made_whatever_the_ledgers_dates() -> None:
    before, after = SINCE - timedelta(seconds=5), SINCE + timedelta(seconds=5)
    account = Account(log=(row(1, at=before),), ledger=(entry(1, at=after),))

    assert read(account).ledger.is_equal
    assert read(account).total.count == 0
    month_before = read(account, since=SINCE - timedelta(days=1), until=SINCE)
    assert month_before.total.count == 1
    assert month_before.ledger.is_equal


def test_keys_of_one_account_share_its_ledger() -> None:
    ledger = (entry(1), entry(2), entry(3))
    statement = read(Account(log=(row(1),), ledger=ledger), Account(log=(row(2),), ledger=ledger))

    assert [each.group for each in subtotals(statement.own_items, ["key"])] == [("key 0",), ("key 1",)]
    assert statement.ledger.only_in_ledger == Tally(1, Decimal("0.04"))
    assert statement.ledger.only_in_log.count == 0


@pytest.mark.parametrize("ahead", [0.0, 4 * 3600.0, None])
def test_the_present_includes_what_a_clock_that_is_ahead_dates(ahead: float | None) -> None:
    at = NOW + timedelta(seconds=ahead or 0) + timedelta(minutes=1)
    statement = read(Account(log=(row(1, at=at),), ledger=(entry(1, at=at), entry(2, at=at)), ahead=ahead))

    assert statement.total.count == statement.ledger.only_in_ledger.count == 1


def test_a_wrong_window_is_rejected() -> None:
    with pytest.raises(InvalidArgumentsError, match="since='2026-11-20T12:00:00': a time with a time zone, from 2020"):
        read(Account(), since=NOW.replace(tzinfo=None))
    for year in (1, 2019, 3000, 9999):
        with pytest.raises(InvalidArgumentsError, match=f"until='{year:04}"):
            read(Account(), until=NOW.replace(year=year))
    with pytest.raises(InvalidArgumentsError, match=r"since=.*: a time before until=.* is allowed"):
        read(Account(), since=NOW, until=NOW)


def test_the_future_is_not_read() -> None:
    account = Account(log=(row(1),))

    assert read(account, until=NOW.replace(year=2999)).total.count == 1
    assert account.windows == [(SINCE - statement_module.MARGIN, NOW + statement_module.MARGIN)]


def test_an_endless_log_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statement_module, "MAX_ROWS", 10)
    with pytest.raises(UnreadableResponseError, match="The request log has more than 10 rows"):
        read(Account(log=tuple(row(number) for number in range(11))))
    with pytest.raises(UnreadableResponseError, match="The ledger has more than 10 rows"):
        read(Account(ledger=tuple(entry(number) for number in range(11))))


amounts = st.integers(0, 10).map(lambda cents: cents / 100)
times = st.integers(-40, 40).map(lambda minutes: SINCE + timedelta(minutes=minutes))


@given(
    st.lists(st.builds(row, st.integers(0, 9), at=times, usd=amounts), max_size=12),
    st.lists(st.builds(entry, st.integers(0, 12), at=times, usd=amounts), max_size=12),
)
def test_log_and_ledger_differ_by_exactly_what_is_shown(log: list[Any], ledger: list[Any]) -> None:
    statement = read(Account(log=tuple(log), ledger=tuple(ledger)))
    check = statement.ledger

    assert check.usd == statement.total.usd - check.only_in_log.usd + check.only_in_ledger.usd + check.different.usd
    assert statement.own + statement.others == statement.total
    assert statement.total == tally(charge.usd for charge in statement.charges)


def test_a_statement_becomes_json() -> None:
    statement = read(Account(log=(row(1), row(2, client_request_id="bot")), ledger=(entry(1), entry(2))))

    document = statement.to_json(["dag", "model"])
    assert document["own"] == {
        "count": 1,
        "usd": 0.04,
        "groups": [{"dag": "postcards", "model": "flux/dev", "count": 1, "usd": 0.04}],
    }
    assert document["other_clients"]["groups"] == [{"model": "flux/dev", "count": 1, "usd": 0.04}]
    assert document["ledger"]["is_equal"]


def test_equal_rows_without_a_request_id_are_several_charges() -> None:
    same = row(1, request_id=None)
    statement = read(Account(log=(same, same), ledger=(entry(1, usd=0.08),)))

    assert statement.total == Tally(2, Decimal("0.08"))
    assert statement.ledger.is_equal
