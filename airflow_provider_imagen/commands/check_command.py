"""``airflow-imagen check``: check the API key, the balance, and the models that DAGs use."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.commands.dag_models import Findings, find_models
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json
from airflow_provider_imagen.exceptions import InvalidRequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_provider_imagen.catalogue.availability import ModelHealth

_PLACES_SHOWN = 5


def add_check(commands: Any) -> None:
    """Add the command to a parser."""
    check = commands.add_parser(
        "check",
        help="check the API key, the balance and the models your DAGs use",
        description="Check the API key, the balance, and whether the models in the DAG files of a folder are alive, "
        "deprecated or withdrawn. Free: Airflow imports the DAG files, but no task runs. The exit status is 0 if no "
        "action is needed and 1 otherwise, for use in a scheduled job.",
    )
    check.add_argument("folder", nargs="?", type=Path, metavar="DAG_FOLDER", help="folder of DAG files, or one file")
    check.add_argument("--imagen-conn-id", default="imagen_default", metavar="ID", help="default: %(default)s")
    check.add_argument("--json", action="store_true", help="write JSON")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if all checks pass, 1 if one fails, 2 if the folder does not exist."""
    if arguments.folder is not None and not arguments.folder.exists():
        print_error(f"Error: {arguments.folder} does not exist.")
        return 2
    with _as_airflow_command():
        findings = find_models(arguments.folder) if arguments.folder is not None else Findings()
        report = _make_report(arguments.imagen_conn_id, findings)
    if arguments.json:
        print_json(report)
    else:
        _show(report)
    return 0 if report["ok"] else 1


def _make_report(imagen_conn_id: str, findings: Findings) -> dict[str, Any]:
    """Run all checks; a check that cannot run counts as failed."""
    places: dict[str, list[str]] = {}
    for use in findings.uses:
        places.setdefault(use.model, []).append(use.place)
    connection, models = _query_api(imagen_conn_id, places)
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


def _query_api(imagen_conn_id: str, places: dict[str, list[str]]) -> tuple[dict[str, Any], list[ModelHealth] | None]:
    """
    Return the connection's state, and the models' health or ``None`` if the API cannot be reached.

    :param places: where each model is used; this adds the connection's default model
    """
    from airflow_provider_imagen.hooks.imagen import ImagenHook

    connection: dict[str, Any] = {"ok": False, "message": "", "balance_usd": None}
    hook = ImagenHook(imagen_conn_id)
    try:
        default_model = hook.default_model
        places.setdefault(default_model, []).append(f"connection {imagen_conn_id}")
        connection["ok"], connection["message"] = hook.test_connection()
        models = hook.check_models(places)
        if connection["ok"]:
            with suppress(InvalidRequestError):  # gateways have no balance
                connection["balance_usd"] = hook.get_balance()
    except Exception as error:  # Airflow's errors for a missing connection, ValueError for an invalid one
        connection["ok"] = False
        connection["message"] = connection["message"] or str(error)
        return connection, None
    finally:
        hook.close()
    return connection, models


@contextmanager
def _as_airflow_command() -> Iterator[None]:
    """
    Set up the environment of Airflow's own commands: access to connections in its database, and only error logs.

    Output of Airflow and of DAG files goes to stderr, so that programs can read the report on stdout.
    """
    environment = {"_AIRFLOW_PROCESS_CONTEXT": "server", "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    added = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _show(report: Mapping[str, Any]) -> None:
    terminal = Terminal()
    connection = report["connection"]
    terminal.line(f"{_mark(connection['ok'])} connection {report['imagen_conn_id']}: {connection['message']}")
    if report["models"] is None:
        terminal.line(f"{_mark(False)} The models could not be checked.")
    for model in report["models"] or ():
        terminal.line(f"{_mark(model['ok'])} {model['model']}: {model['sentence']} ({_places(model['places'])})")
        if model["warning"]:
            terminal.line(f"warn  {model['model']}: {model['warning']}")
    for broken in report["broken"]:
        terminal.line(f"{_mark(False)} {broken}")
    if report["unread"]:
        terminal.line(f"  not checked, known only at run time: {_places(report['unread'])}")
    warned = any(model["warning"] for model in report["models"] or ())
    passed = "No action needed, but see the warnings." if warned else "No action needed."
    terminal.line(passed if report["ok"] else "Action needed.")


def _mark(is_fine: bool) -> str:
    return "ok   " if is_fine else "FAIL "


def _places(places: Sequence[str]) -> str:
    shown = ", ".join(places[:_PLACES_SHOWN])
    return shown if len(places) <= _PLACES_SHOWN else f"{shown} and {len(places) - _PLACES_SHOWN} more"
