"""``airflow-imagen bill``: what the API charged, and whether each charge produced an image."""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, get_args

from airflow_provider_imagen.bill import Dimension
from airflow_provider_imagen.commands.airflow_environment import as_airflow_command
from airflow_provider_imagen.commands.terminal import print_error, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.accounting.reconciliation import Reconciliation
    from airflow_provider_imagen.accounting.statement import Statement
    from airflow_provider_imagen.hooks.imagen import ImagenHook

_SHOWN_CHARACTERS = 500


def add_bill(commands: Any) -> None:
    """Add the command to a parser."""
    bill = commands.add_parser(
        "bill",
        help="add up what the API charged, by DAG, task, model, day or key",
        description="Add up what the API charged in a time window, by its request log, and compare that with the "
        "account's ledger. Charges of other clients of the same key are listed separately. With --reconcile, match "
        "each charge with the images in output folders. Free, and changes nothing. The exit status is 0; 1 if "
        "--reconcile finds that an image or a charge is missing, or cannot be sure; and 2 if something could not be "
        "read.",
    )
    bill.add_argument(
        "--since",
        type=_read_time,
        metavar="TIME",
        help="start of the window: a date or time, in UTC unless it has an offset (default: start of this month)",
    )
    bill.add_argument(
        "--until", type=_read_time, metavar="TIME", help="end of the window, which it does not include (default: now)"
    )
    bill.add_argument(
        "--by", action="append", choices=get_args(Dimension), help="group the charges; can be repeated (default: dag)"
    )
    bill.add_argument(
        "--reconcile",
        nargs="+",
        metavar="FOLDER",
        help="match the charges with the images in these output folders, or in those below them (ObjectStoragePath)",
    )
    bill.add_argument(
        "--verify", action="store_true", help="with --reconcile, read every image and compare its SHA-256"
    )
    bill.add_argument(
        "--imagen-conn-id",
        action="append",
        metavar="ID",
        help="connection whose key was charged; can be repeated (default: imagen_default)",
    )
    bill.add_argument("--json", action="store_true", help="write JSON")
    bill.add_argument("--csv", action="store_true", help="write CSV: a row per group or, with --reconcile, per charge")
    bill.set_defaults(run=run_bill)


def run_bill(arguments: argparse.Namespace) -> int:
    """Run the command; return 0, 1 if an image or a charge is missing, or 2 if something cannot be read."""
    from airflow_provider_imagen._compat import AirflowNotFoundException
    from airflow_provider_imagen.accounting.statement import month_start
    from airflow_provider_imagen.commands import bill_report
    from airflow_provider_imagen.exceptions import ImagenError
    from airflow_provider_imagen.hooks.imagen import ImagenHook

    if arguments.json and arguments.csv:
        print_error("Error: pass --json or --csv, not both.")
        return 2
    if arguments.verify and not arguments.reconcile:
        print_error("Error: --verify needs --reconcile.")
        return 2
    now = datetime.now(UTC)
    if (arguments.since or month_start(now)) >= (until := arguments.until or now):
        print_error(f"Error: --since must be before --until ({until:%Y-%m-%d %H:%M} UTC).")
        return 2
    by: list[Dimension] = list(dict.fromkeys(arguments.by or ["dag"]))
    hooks = [ImagenHook(conn_id) for conn_id in dict.fromkeys(arguments.imagen_conn_id or ["imagen_default"])]
    try:
        with as_airflow_command():
            statement, reconciliation = _read(arguments, hooks)
    except (ImagenError, ValueError, AirflowNotFoundException) as error:  # the last two: an unusable connection
        print_error(f"Error: {printable(str(error), _SHOWN_CHARACTERS)}")
        return 2
    finally:
        for hook in hooks:
            hook.close()
    if arguments.json:
        bill_report.write_json(statement, reconciliation, by)
    elif arguments.csv:
        bill_report.write_csv(statement, reconciliation, by)
    else:
        bill_report.write_text(statement, reconciliation, by)
    if reconciliation is not None:
        return 0 if reconciliation.is_complete else 1
    return 2 if statement.unreadable or statement.ledger.unreadable else 0


def _read(arguments: argparse.Namespace, hooks: list[ImagenHook]) -> tuple[Statement, Reconciliation | None]:
    from airflow_provider_imagen.hooks.charges import read_charges, reconcile_charges

    since, until = arguments.since, arguments.until
    clients = {hook.imagen_conn_id: hook.get_conn() for hook in hooks}
    with _progress() as on_row:
        if not arguments.reconcile:
            return read_charges(clients, since=since, until=until, on_row=on_row), None
        reconciliation = reconcile_charges(
            clients, arguments.reconcile, since=since, until=until, verify=arguments.verify, on_row=on_row
        )
    return reconciliation.statement, reconciliation


@contextmanager
def _progress() -> Iterator[Callable[[], None]]:
    """Yield a function that counts rows of the log on a terminal, because reading a long one takes minutes."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    rows = count(1)

    def on_row() -> None:
        if (number := next(rows)) % 100 == 0:
            sys.stderr.write(f"\r{number:,} rows of the request log")
            sys.stderr.flush()

    try:
        yield on_row
    finally:
        sys.stderr.write("\r\033[K")


def _read_time(text: str) -> datetime:
    from airflow_provider_imagen.accounting.statement import YEARS

    try:
        at = datetime.fromisoformat(text)
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a date such as 2026-11-01 or a time such as 2026-11-01T09:00+02:00 is allowed"
        ) from None
    if at.year not in YEARS:
        raise argparse.ArgumentTypeError(f"{text!r}: must be between {YEARS[0]} and {YEARS[-1]}")
    return at
