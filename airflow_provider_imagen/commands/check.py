"""``airflow-imagen check``: say whether the pictures that DAGs ask for can still be made."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.commands.dag_models import Findings, find_models
from airflow_provider_imagen.commands.screen import Screen, complain, write_json
from airflow_provider_imagen.exceptions import InvalidRequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_provider_imagen.api.lifecycle import ModelHealth

_PLACES_SHOWN = 5


def add_check(commands: Any) -> None:
    """Add the command to a parser."""
    check = commands.add_parser(
        "check",
        help="check the key, the balance and the models your DAGs use",
        description="Check the key, the balance, and whether the models that the DAG files of a folder name are alive, "
        "deprecated or withdrawn. Free: nothing is generated, and no DAG file is imported. The exit status is 0 when "
        "all is well and 1 when something has to be done, for use in a weekly job.",
    )
    check.add_argument("folder", nargs="?", type=Path, metavar="DAG_FOLDER", help="folder of DAG files, or one file")
    check.add_argument("--imagen-conn-id", default="imagen_default", metavar="ID", help="default: %(default)s")
    check.add_argument("--json", action="store_true", help="write JSON")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Run the command; 1 when something has to be done, 2 when the folder is not there."""
    if arguments.folder is not None and not arguments.folder.exists():
        complain(f"Error: there is no folder {arguments.folder}.")
        return 2
    findings = find_models(arguments.folder) if arguments.folder is not None else Findings()
    report = _make_report(arguments.imagen_conn_id, findings)
    if arguments.json:
        write_json(report)
    else:
        _show(report)
    return 0 if report["ok"] else 1


def _make_report(imagen_conn_id: str, findings: Findings) -> dict[str, Any]:
    """Ask about everything; what cannot be asked is told and counts as wrong."""
    places: dict[str, list[str]] = {}
    for use in findings.uses:
        places.setdefault(use.model, []).append(use.place)
    connection, models = _ask(imagen_conn_id, places)
    return {
        "ok": connection["ok"]
        and not findings.broken
        and models is not None
        and all(state.is_fine for state in models),
        "imagen_conn_id": imagen_conn_id,
        "connection": connection,
        "models": models
        and [
            {**state.to_json(), "ok": state.is_fine, "sentence": state.sentence, "places": places[state.model]}
            for state in models
        ],
        "unread": findings.unread,
        "broken": findings.broken,
    }


def _ask(imagen_conn_id: str, places: dict[str, list[str]]) -> tuple[dict[str, Any], list[ModelHealth] | None]:
    """
    Ask about the connection, and about the models when the API can be reached.

    :param places: gets the connection's default model added
    """
    from airflow_provider_imagen.hooks.imagen import ImagenHook

    connection: dict[str, Any] = {"ok": False, "message": "", "balance_usd": None}
    hook = ImagenHook(imagen_conn_id)
    try:
        with _all_connections():
            default_model = hook.default_model
        places.setdefault(default_model, []).append(f"connection {imagen_conn_id}")
        connection["ok"], connection["message"] = hook.test_connection()
        models = hook.check_models(places)
        if connection["ok"]:
            with suppress(InvalidRequestError):  # a gateway names none
                connection["balance_usd"] = hook.get_balance()
    except Exception as error:  # a connection that is missing raises one of Airflow's errors, a wrong one a ValueError
        connection["ok"] = False
        connection["message"] = connection["message"] or str(error)
        return connection, None
    finally:
        hook.close()
    return connection, models


@contextmanager
def _all_connections() -> Iterator[None]:
    """
    Let Airflow look for connections in its database too, where a command may.

    Outside a task it looks into the environment and secrets backends only, unless the process says that it is one of
    the servers.
    """
    name = "_AIRFLOW_PROCESS_CONTEXT"
    before = os.environ.get(name)
    os.environ[name] = before or "server"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _show(report: Mapping[str, Any]) -> None:
    screen = Screen()
    connection = report["connection"]
    screen.line(f"{_mark(connection['ok'])} connection {report['imagen_conn_id']}: {connection['message']}")
    if report["models"] is None:
        screen.line(f"{_mark(False)} the models could not be checked")
    for model in report["models"] or ():
        screen.line(f"{_mark(model['ok'])} {model['model']}: {model['sentence']} ({_places(model['places'])})")
        if model["warning"]:
            screen.line(f"warn  {model['model']}: {model['warning']}")
    for broken in report["broken"]:
        screen.line(f"{_mark(False)} {broken}")
    if report["unread"]:
        screen.line(f"  not checked, known only when the DAG runs: {_places(report['unread'])}")
    warned = any(model["warning"] for model in report["models"] or ())
    fine = "Nothing is broken; mind the warnings." if warned else "All is well."
    screen.line(fine if report["ok"] else "Something has to be done.")


def _mark(is_fine: bool) -> str:
    return "ok   " if is_fine else "WRONG"


def _places(places: Sequence[str]) -> str:
    shown = ", ".join(places[:_PLACES_SHOWN])
    return shown if len(places) <= _PLACES_SHOWN else f"{shown} and {len(places) - _PLACES_SHOWN} more"
