"""``airflow-imagen check``: check the API key, the balance, and the models that DAGs use."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.commands.airflow_environment import as_airflow_command
from airflow_provider_imagen.commands.dag_models import Findings, find_models
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json
from airflow_provider_imagen.exceptions import ImagenError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from airflow_provider_imagen.catalogue.availability import ModelHealth
    from airflow_provider_imagen.hooks.imagen import ImagenHook

_PLACES_SHOWN = 5


def add_check(commands: Any) -> None:
    """Add the command to a parser."""
    check = commands.add_parser(
        "check",
        help="check the API key, the balance and the models your DAGs use",
        description="Check the API key, the balance, and whether the models in the DAG files of a folder are alive, "
        "deprecated or withdrawn. Free: Airflow imports the DAG files, but no task runs. Without a connection, the "
        "models are checked offline, with the catalogue of this version. The exit status is 0 if no action is needed "
        "and 1 otherwise, for use in a scheduled job.",
    )
    check.add_argument("folder", nargs="?", type=Path, metavar="DAG_FOLDER", help="folder of DAG files, or one file")
    check.add_argument(
        "--imagen-conn-id", metavar="ID", help="connection that must exist (default: imagen_default, if it exists)"
    )
    check.add_argument("--json", action="store_true", help="write JSON")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if all checks pass, 1 if one fails, 2 if the folder does not exist."""
    if arguments.folder is not None and not arguments.folder.exists():
        print_error(f"Error: {arguments.folder} does not exist.")
        return 2
    with as_airflow_command():
        findings = find_models(arguments.folder) if arguments.folder is not None else Findings()
        report = _make_report(arguments.imagen_conn_id, findings)
    if arguments.json:
        print_json(report)
    else:
        _show(report)
    return 0 if report["ok"] else 1


def _make_report(imagen_conn_id: str | None, findings: Findings) -> dict[str, Any]:
    """
    Run all checks; without the API, the models are checked with the catalogue.

    :param imagen_conn_id: a connection that must exist; ``None`` for the default one, if it exists
    """
    from airflow_provider_imagen.catalogue.availability import judge_models_offline
    from airflow_provider_imagen.hooks.imagen import DEFAULT_MODEL, ImagenHook

    places: dict[str, list[str]] = {}
    for use in findings.uses:
        places.setdefault(use.model, []).append(use.place)
    hook = ImagenHook(imagen_conn_id or ImagenHook.default_conn_name)
    connection, models = _query_api(hook, places, is_optional=imagen_conn_id is None)
    models_from = "API" if models is not None else "catalogue"
    if models is None:
        if connection["ok"] is None or not places:
            places.setdefault(DEFAULT_MODEL, []).append("default model")
        models = judge_models_offline(places, today=datetime.now(UTC).date())
    return {
        "ok": connection["ok"] is not False and not findings.broken and all(state.is_fine for state in models),
        "imagen_conn_id": hook.imagen_conn_id,
        "connection": connection,
        "models_from": models_from,
        "models": [
            {**state.to_json(), "ok": state.is_fine, "sentence": state.sentence, "places": places[state.model]}
            for state in models
        ],
        "unread": findings.unread,
        "broken": findings.broken,
    }


def _query_api(
    hook: ImagenHook, places: dict[str, list[str]], *, is_optional: bool
) -> tuple[dict[str, Any], list[ModelHealth] | None]:
    """
    Return the connection's state, and the models' health or ``None`` if the API cannot be reached.

    The state's ``ok`` is ``None`` if the connection is optional and missing.

    :param places: where each model is used; this adds the connection's default model
    """
    from airflow_provider_imagen._compat import AirflowNotFoundException

    connection: dict[str, Any] = {"ok": False, "message": "", "balance_usd": None}
    try:
        default_model = hook.default_model
        places.setdefault(default_model, []).append(f"connection {hook.imagen_conn_id}")
        connection["ok"], connection["message"] = hook.test_connection()
        models = hook.check_models(places)
        if connection["ok"]:
            with suppress(ImagenError):  # the message says why; gateways have none
                connection["balance_usd"] = hook.get_balance()
    except AirflowNotFoundException as error:
        connection.update(ok=None if is_optional else False, message=str(error))
        return connection, None
    except Exception as error:  # such as ValueError for an invalid connection
        if connection["ok"] or not connection["message"]:
            connection.update(ok=False, message=f"{connection['message']} {error}".strip())
        return connection, None
    finally:
        hook.close()
    return connection, models


def _show(report: Mapping[str, Any]) -> None:
    terminal = Terminal()
    connection = report["connection"]
    terminal.line(f"{_mark(connection['ok'])} connection {report['imagen_conn_id']}: {connection['message']}")
    if report["models_from"] == "catalogue":
        terminal.line(
            "  not checked without a working connection: key, balance, and which models the API serves now; "
            "the models are checked with the catalogue of this version"
        )
    for model in report["models"]:
        terminal.line(f"{_mark(model['ok'])} {model['model']}: {model['sentence']} ({_places(model['places'])})")
        if model["warning"]:
            terminal.line(f"warn  {model['model']}: {model['warning']}")
    for broken in report["broken"]:
        terminal.line(f"{_mark(False)} {broken}")
    if report["unread"]:
        terminal.line(f"  not checked, known only at run time: {_places(report['unread'])}")
    warned = any(model["warning"] for model in report["models"])
    passed = "No action needed, but see the warnings." if warned else "No action needed."
    terminal.line(passed if report["ok"] else "Action needed.")


def _mark(is_fine: bool | None) -> str:
    return {True: "ok   ", False: "FAIL ", None: "skip "}[is_fine]


def _places(places: Sequence[str]) -> str:
    shown = ", ".join(places[:_PLACES_SHOWN])
    return shown if len(places) <= _PLACES_SHOWN else f"{shown} and {len(places) - _PLACES_SHOWN} more"
