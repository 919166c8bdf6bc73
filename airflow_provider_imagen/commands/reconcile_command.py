"""``airflow-imagen reconcile``: find out whether a task's in-doubt requests were billed."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from airflow_provider_imagen.journal.log import JournalStore
    from airflow_provider_imagen.journal.records import Intent, Record
    from airflow_provider_imagen.run.charge_lookup import Charge

IN_DOUBT = ("unknown", "other key")
"""Outcomes that leave a request in doubt; requests sent with another API key are not in this key's log."""


def add_reconcile(commands: Any) -> None:
    """Add the command to a parser."""
    reconcile = commands.add_parser(
        "reconcile",
        help="find out whether in-doubt requests were billed",
        description="Look up a task's requests with an unknown outcome in the API's log, and record the outcome in the "
        "task's journal. Free: nothing is generated. Pass output folders (Airflow 3.1 and 3.2), or the ids of a task "
        "instance (Airflow 3.3, on a machine with access to Airflow's database). Requests sent with another API key "
        "than the connection's are not in its log and stay in doubt. The exit status is 0 if nothing is in doubt any "
        "more, and 1 otherwise.",
    )
    reconcile.add_argument("folders", nargs="*", metavar="FOLDER", help="output folder (ObjectStoragePath)")
    reconcile.add_argument("--dag-id", metavar="ID")
    reconcile.add_argument("--run-id", metavar="ID")
    reconcile.add_argument("--task-id", metavar="ID")
    reconcile.add_argument("--map-index", type=int, default=-1, metavar="N", help="map index, if the task is mapped")
    reconcile.add_argument("--imagen-conn-id", default="imagen_default", metavar="ID", help="default: %(default)s")
    reconcile.add_argument("--json", action="store_true", help="write JSON")
    reconcile.set_defaults(run=run_reconcile)


def run_reconcile(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if nothing is in doubt any more, 1 if something is, 2 if the lookup failed."""
    from airflow_provider_imagen._compat import AirflowNotFoundException
    from airflow_provider_imagen.exceptions import ImagenError
    from airflow_provider_imagen.hooks.imagen import ImagenHook

    ids = (arguments.dag_id, arguments.run_id, arguments.task_id)
    if bool(arguments.folders) == any(ids) or (any(ids) and not all(ids)):
        print_error("Error: pass output folders, or all of --dag-id, --run-id and --task-id.")
        return 2
    rows: list[dict[str, Any]] = []
    hook = ImagenHook(arguments.imagen_conn_id)
    try:
        for store in _stores(arguments):
            rows += _reconcile(store, hook.get_conn())
    except (ImagenError, ValueError, AirflowNotFoundException) as error:  # the last two: an unusable connection
        print_error(f"Error: {error}")
        return 2
    finally:
        hook.close()
    if arguments.json:
        print_json(rows)
    else:
        _show(rows)
    return 1 if any(row["outcome"] in IN_DOUBT for row in rows) else 0


def _stores(arguments: argparse.Namespace) -> Iterator[JournalStore]:
    from airflow_provider_imagen.hooks.folders import open_folder
    from airflow_provider_imagen.journal.stores import FolderJournalStore, TaskStateJournalStore, list_identities

    if arguments.folders:
        for address in arguments.folders:
            folder = open_folder(address)
            for identity in list_identities(folder):
                yield FolderJournalStore(folder, identity)
    else:
        from airflow_provider_imagen._compat import DatabaseStateStore

        state_store = DatabaseStateStore(
            dag_id=arguments.dag_id,
            run_id=arguments.run_id,
            task_id=arguments.task_id,
            map_index=arguments.map_index,
        )
        yield TaskStateJournalStore(state_store, {})


def _reconcile(store: JournalStore, client: Any) -> list[dict[str, Any]]:
    """Resolve a journal's in-doubt requests through the API's log, and return one row per request."""
    from airflow_provider_imagen._compat import machine_lock
    from airflow_provider_imagen.journal.log import annotate_journal, read_journal
    from airflow_provider_imagen.journal.records import ChargeLost, Rejected
    from airflow_provider_imagen.run.charge_lookup import ChargeLookup
    from airflow_provider_imagen.run.reconcile import is_final

    unresolved = read_journal(store).all_unresolved()
    if not unresolved:
        return []
    lookup = ChargeLookup(
        iter_request_logs=client.iter_request_logs,
        wait=time.sleep,
        patience_seconds=0,
        clock_offset_seconds=lambda: client.clock_offset_seconds,
    )
    account = client.settings.account
    visible = {name: intent for name, intent in unresolved.items() if intent.is_visible_to(account)}
    charges = lookup.look_once({name: intent.at for name, intent in visible.items()}, strict=True) if visible else {}
    rows: list[dict[str, Any]] = []
    records: list[Record] = []
    for client_request_id, intent in unresolved.items():
        charge = charges.get(client_request_id)
        if charge is not None and charge.billed:
            usd = charge.usd or intent.usd  # the quoted price if the log states no cost, or 0
            records.append(
                ChargeLost(
                    key=intent.key, client_request_id=client_request_id, usd=usd, inference_id=charge.inference_id
                )
            )
            rows.append(_row(intent, "billed", charge, usd))
        elif client_request_id not in visible:
            rows.append(_row(intent, "other key", None, intent.usd))
        elif charge is not None or is_final(intent.at):
            records.append(Rejected(key=intent.key, client_request_id=client_request_id))
            rows.append(_row(intent, "not billed", charge, Decimal(0)))
        else:
            rows.append(_row(intent, "unknown", charge, intent.usd))
    with machine_lock():
        annotate_journal(store, records)
    return rows


def _row(intent: Intent, outcome: str, charge: Charge | None, usd: Decimal | None) -> dict[str, Any]:
    return {
        "client_request_id": intent.client_request_id,
        "inference_id": charge.inference_id if charge else None,
        "model": intent.model,
        "prompt": intent.target.prompt,
        "outcome": outcome,
        "usd": float(usd) if usd is not None else None,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    terminal = Terminal()
    if not rows:
        terminal.line("Nothing is in doubt.")
        return
    for row in rows:
        usd = "unknown cost" if row["usd"] is None else format_usd(row["usd"])
        terminal.line(f"{row['outcome']:<10}  {usd:>12}  {row['client_request_id']}  {json.dumps(row['prompt'][:60])}")
    billed = sum(row["usd"] or 0 for row in rows if row["outcome"] == "billed")
    unknown = sum(row["outcome"] in IN_DOUBT for row in rows)
    count = "1 request" if len(rows) == 1 else f"{len(rows)} requests"
    terminal.line(f"{count}: {format_usd(billed)} billed without an image, {unknown} still in doubt.")
