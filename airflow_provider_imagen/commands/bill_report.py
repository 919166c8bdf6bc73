"""The output of ``airflow-imagen bill``: text, JSON and CSV."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.accounting.reconciliation import MISSING, Entry, entry_json
from airflow_provider_imagen.accounting.statement import without_tasks
from airflow_provider_imagen.bill import Tally, subtotals
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json, printable
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_provider_imagen.accounting.reconciliation import Category, Reconciliation
    from airflow_provider_imagen.accounting.statement import LedgerCheck, Statement
    from airflow_provider_imagen.bill import Dimension, LineItem

MAX_LISTED: Final = 20
"""Most missing images and charges that are listed as text."""

_OWN: Final = "airflow-provider-imagen"
_OTHERS: Final = "other clients"
_HEADERS: Final[dict[Dimension, str]] = {"dag": "DAG", "task": "Task", "model": "Model", "day": "Day", "key": "Key"}
_MEANINGS: Final[dict[Category, str]] = {
    "stored": "charged and stored",
    "lost": "charged, but the folders say that there is no image",
    "gone": "charged, but the file is missing or has changed",
    "unrecorded": "charged to a task of these folders, but recorded in none",
    "not charged": "stored, but not charged",
    "elsewhere": "charged to a task that has nothing in these folders",
    "hook": "charged through ImagenHook.generate_images, which keeps no records",
    "other client": "charged to other clients of the key",
}
_SHOWN_CHARACTERS: Final = 80
_CELL_CHARACTERS: Final = 5000
_FORMULA_STARTS: Final = ("=", "+", "-", "@")


def write_json(statement: Statement, reconciliation: Reconciliation | None, by: Sequence[Dimension]) -> None:
    """Write a bill as JSON."""
    document = statement.to_json(by)
    if reconciliation is not None:
        document["reconciliation"] = reconciliation.to_json()
    print_json(document)


def write_csv(statement: Statement, reconciliation: Reconciliation | None, by: Sequence[Dimension]) -> None:
    """Write a bill as CSV: a row per entry of the reconciliation or, without one, per group."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for doubt in _doubts(statement, reconciliation):
        print_error(doubt)
    if reconciliation is not None:
        writer.writerow(Entry.__struct_fields__)
        for entry in reconciliation.entries:
            writer.writerow(map(_cell, entry_json(entry).values()))
        return
    writer.writerow(["client", *by, "charges", "usd"])
    for client, items in ((_OWN, statement.own_items), (_OTHERS, statement.other_items)):
        for each in subtotals(items, by):
            writer.writerow(map(_cell, [client, *each.group, each.count, float(each.usd)]))


def _cell(value: Any) -> Any:
    """Return a cell whose text, which may come from outside, is printable, and no formula to any spreadsheet."""
    if not isinstance(value, str):
        return value
    text = printable(value, _CELL_CHARACTERS)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def write_text(statement: Statement, reconciliation: Reconciliation | None, by: Sequence[Dimension]) -> None:
    """Write a bill for people."""
    terminal = Terminal()
    window = f"{statement.since:%Y-%m-%d %H:%M} to {statement.until:%Y-%m-%d %H:%M} UTC"
    key = "key" if len(statement.keys) == 1 else "keys"
    terminal.heading(f"Charges of {key} {', '.join(statement.keys)}, {window}")
    _write_groups(terminal, statement.own_items, by)
    if others := without_tasks(by):
        terminal.line(f"Other clients of the {key}:")
        _write_groups(terminal, statement.other_items, others)
    for name, total in (
        (_OWN, statement.own),
        (f"Other clients of the {key}", statement.others),
        ("Total", statement.total),
    ):
        terminal.line(f"{name:<26}{format_usd(total.usd):>12}  {_count(total.count, 'charge')}")
    _write_ledger(terminal, statement.ledger)
    for doubt in _doubts(statement, reconciliation):
        terminal.line(doubt)
    if reconciliation is not None:
        _write_reconciliation(terminal, reconciliation)


def _write_groups(terminal: Terminal, items: Iterable[LineItem], by: Sequence[Dimension]) -> None:
    rows = [
        (*(printable(value, _SHOWN_CHARACTERS) for value in each.group), f"{each.count:,}", format_usd(each.usd))
        for each in subtotals(items, by)
    ]
    if rows:
        terminal.table([*(_HEADERS[each] for each in by), "Charges", "USD"], rows, right=("Charges", "USD"))


def _write_ledger(terminal: Terminal, ledger: LedgerCheck) -> None:
    """Write how the ledger compares; a difference is shown with its reasons."""
    verdict = "agrees" if ledger.is_equal else "differs:"
    terminal.line(f"{'Ledger':<26}{format_usd(ledger.usd):>12}  {verdict}")
    for found, meaning in (
        (ledger.only_in_log, "only in the log (the ledger shows recent charges later)"),
        (ledger.only_in_ledger, "only in the ledger (another key of the account, or not logged yet)"),
        (ledger.other_charges, "for something other than models, such as expired credits"),
    ):
        if found.count:
            verb = "is" if found.count == 1 else "are"
            terminal.line(f"  {_count(found.count, 'charge')}, {format_usd(found.usd)}, {verb} {meaning}")
    if (refunds := ledger.refunds).count:
        terminal.line(f"  {_count(refunds.count, 'refund')}, {format_usd(refunds.usd)}")
    if (different := ledger.different).count:
        has = "has" if different.count == 1 else "have"
        change = f"{format_usd(abs(different.usd))} {'less' if different.usd < 0 else 'more'} in all"
        terminal.line(f"  {_count(different.count, 'charge')} {has} another amount in the ledger, {change}")


def _doubts(statement: Statement, reconciliation: Reconciliation | None) -> Iterator[str]:
    """Yield sentences about what could not be read or matched."""
    if statement.unreadable:
        yield f"{_count(statement.unreadable, 'row')} of the request log cannot be read and may be charges."
    if statement.ledger.unreadable:
        yield f"{_count(statement.ledger.unreadable, 'row')} of the ledger cannot be read."
    if reconciliation is not None and reconciliation.unmatched_images:
        yield f"{_count(reconciliation.unmatched_images, 'image')} without a request or date cannot be matched."


def _write_reconciliation(terminal: Terminal, reconciliation: Reconciliation) -> None:
    terminal.line("")
    terminal.heading("Matched with the folders")
    tallies = {category: total for category, total in reconciliation.tallies.items() if total.count}
    rows: list[tuple[str, str, str, str]] = [
        (category, f"{total.count:,}", format_usd(total.usd), _MEANINGS[category])
        for category, total in tallies.items()
    ]
    total = sum(tallies.values(), Tally())
    rows.append(("total", f"{total.count:,}", format_usd(total.usd), ""))
    terminal.table(("Category", "Entries", "USD", "Meaning"), rows, right=("Entries", "USD"))
    missing = sorted(reconciliation.missing, key=lambda entry: (MISSING.index(entry.category), entry.at))
    for entry in missing[:MAX_LISTED]:
        terminal.line(_describe(entry))
    if len(missing) > MAX_LISTED:
        terminal.line(f"… and {len(missing) - MAX_LISTED:,} more; --csv lists all of them.")
    if (overstated := reconciliation.overstated).count:
        entries = _count(overstated.count, "entry", "entries")
        terminal.line(f"The folders state {format_usd(overstated.usd)} more than was charged for {entries}.")
    if not missing:
        terminal.line(_describe_nothing_missing(reconciliation))


def _describe_nothing_missing(reconciliation: Reconciliation) -> str:
    if not reconciliation.is_complete:
        return "Nothing is known to be missing, but not everything could be read and matched."
    elsewhere = reconciliation.tallies["elsewhere"]
    if not elsewhere.count:
        return "Nothing is missing."
    usd = format_usd(elsewhere.usd)
    return f"Nothing is missing; {usd} was charged to tasks that have nothing in these folders."


def _describe(entry: Entry) -> str:
    usd = entry.usd_recorded if entry.category == "not charged" else entry.usd
    parts = (
        f"{entry.at:%Y-%m-%d %H:%M:%S}",
        "unknown cost" if usd is None else format_usd(usd),
        f"{entry.dag_id}.{entry.task_id}" if entry.dag_id and entry.task_id else "unknown task",
        entry.model,
        f"inference {entry.inference_id}",
        entry.reason,
        entry.path,
    )
    return f"{entry.category:<13}" + "  ".join(printable(part, 4 * _SHOWN_CHARACTERS) for part in parts if part)


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
