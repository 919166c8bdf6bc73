"""``airflow-imagen quote``: what a run of a DAG would cost, without running it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.commands.airflow_environment import as_airflow_command
from airflow_provider_imagen.commands.dag_models import load_dags
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json, printable
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    import argparse
    from decimal import Decimal

    from airflow_provider_imagen.commands.dag_quote import DagQuote, TaskQuote

_ERROR_CHARACTERS: Final = 400


def add_quote(commands: Any) -> None:
    """Add the command to a parser."""
    quote = commands.add_parser(
        "quote",
        help="show what a run of a DAG would cost, without running it",
        description="Import a DAG file, render what is known before a run, and add up what its images would cost at "
        "the API's current prices if the DAG were triggered now and every task ran. Free: no task runs, and nothing "
        "is asked for but prices. The exit status is 0, 1 if a task would fail before it sends anything, and 2 if the "
        "file or the configuration cannot be used.",
    )
    quote.add_argument("dag_file", type=Path, metavar="DAG_FILE", help="file that defines the DAG")
    quote.add_argument("--dag-id", metavar="ID", help="which DAG, if the file defines several")
    quote.add_argument("--conf", default="{}", metavar="JSON", help="configuration of the run, such as '{\"n\": 2}'")
    quote.add_argument("--json", action="store_true", help="write JSON")
    quote.set_defaults(run=run_quote)


def run_quote(arguments: argparse.Namespace) -> int:
    """Run the command; return 0, 1 if a task would fail before it sends anything, 2 if there is nothing to quote."""
    try:
        conf = _read_conf(arguments.conf)
        with as_airflow_command():
            quote = _quote(arguments.dag_file, arguments.dag_id, conf)
    except _UnusableError as error:
        print_error(f"Error: {error}")
        return 2
    if arguments.json:
        print_json(_to_json(quote))
    else:
        _show(quote)
    return 1 if any(task.problems for task in quote.tasks) else 0


class _UnusableError(Exception):
    """The file or the configuration cannot be used; the message is one line."""


def _read_conf(text: str) -> dict[str, Any]:
    try:
        conf = json.loads(text)
    except ValueError as error:
        raise _UnusableError(f"--conf is not JSON: {error}") from None
    if not isinstance(conf, dict):
        raise _UnusableError('--conf is not a JSON object, such as {"n": 2}')
    return conf


def _quote(dag_file: Path, dag_id: str | None, conf: dict[str, Any]) -> DagQuote:
    from airflow_provider_imagen._compat import ParamValidationError
    from airflow_provider_imagen.commands.dag_quote import quote_dag

    if not dag_file.is_file():
        raise _UnusableError(f"{dag_file} is not a file")
    bag = load_dags(dag_file.resolve())
    for error in bag.import_errors.values():
        raise _UnusableError(f"{dag_file}: {printable(error.strip().splitlines()[-1], _ERROR_CHARACTERS)}")
    found = ", ".join(sorted(bag.dags))
    if dag_id is None and len(bag.dags) != 1:
        several = f"{dag_file} defines several DAGs; choose one with --dag-id: {found}"
        raise _UnusableError(several if found else f"{dag_file} defines no DAG")
    if dag_id is not None and dag_id not in bag.dags:
        raise _UnusableError(f"{dag_file} does not define the DAG {dag_id!r}, but {found or 'none'}")
    dag = bag.dags[dag_id or found]
    try:
        return quote_dag(dag, conf=conf, now=datetime.now(UTC))
    except ParamValidationError as error:
        raise _UnusableError(f"--conf and the params of the DAG: {printable(str(error), _ERROR_CHARACTERS)}") from None


# --- output -----------------------------------------------------------------------------------------------------------


def _to_json(quote: DagQuote) -> dict[str, Any]:
    total = quote.total
    return {
        "dag_id": quote.dag_id,
        "usd": _number(total.usd),
        "usd_source": total.source,
        "images": total.images,
        "requests": total.requests,
        "is_complete": all(task.is_exact for task in quote.tasks),
        "notices": list(quote.notices),
        "tasks": [
            {
                "task_id": task.task_id,
                "instances": task.instances,
                "is_counted": task.is_counted,
                "prompts": task.prompts,
                "images": task.quote and task.quote.images,
                "requests": task.quote and task.quote.requests,
                "usd": task.quote and _number(task.quote.usd),
                "usd_source": task.quote.source if task.quote else "unknown",
                "only_in_a_run": dict(task.only_in_a_run),
                "fallbacks": dict(task.fallbacks),
                "problems": list(task.problems),
            }
            for task in quote.tasks
        ],
    }


def _number(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)


def _show(quote: DagQuote) -> None:
    terminal = Terminal()
    if not quote.tasks:
        terminal.line(f"{quote.dag_id} has no task that is an ImagenGenerateOperator or @task.imagen.")
        return
    terminal.table(
        ("Task", "Instances", "Prompts", "Images", "Cost"),
        [
            (
                task.task_id,
                "?" if task.instances is None else str(task.instances),
                str(task.prompts) if task.is_counted else "?",
                str(task.quote.images) if task.is_counted and task.quote else "?",
                _cost(task),
            )
            for task in quote.tasks
        ],
        right=("Instances", "Prompts", "Images", "Cost"),
    )
    for task in quote.tasks:
        for problem in task.problems:
            terminal.line(f"FAIL  {task.task_id}: {printable(problem, _ERROR_CHARACTERS)}")
        for retired, fallback in task.fallbacks.items():
            names = printable(f"{retired} is retired; the price is that of its fallback {fallback}", _ERROR_CHARACTERS)
            terminal.line(f"{task.task_id}: {names}")
        for argument, source in task.only_in_a_run.items():
            where = printable(source, _ERROR_CHARACTERS)
            terminal.line(f"{task.task_id}: {argument} is known only at run time ({where})")
    total = quote.total
    prices = {"live": "current prices", "last known": "last known prices of the catalogue", "unknown": ""}[total.source]
    amount = f"{format_usd(total.usd)} at {prices}" if total.usd is not None else "unknown, because a price is"
    left_out = [task.task_id for task in quote.tasks if not task.is_counted]
    rest = f", not counting {', '.join(left_out)}" if left_out else ""
    if at_defaults := [task.task_id for task in quote.tasks if task.is_counted and not task.is_exact]:
        rest += f", with default parameters for {', '.join(at_defaults)}"
    terminal.line(f"Total of {quote.dag_id}: {amount if len(left_out) < len(quote.tasks) else 'unknown'}{rest}.")
    for notice in quote.notices:
        terminal.line(notice)


def _cost(task: TaskQuote) -> str:
    if task.quote is None or task.quote.usd is None:
        return "?"
    if task.is_exact:
        return format_usd(task.quote.usd)
    if task.is_counted:
        return f"{format_usd(task.quote.usd)} at default parameters"
    if task.problems:
        return "?"
    if "num_images" in task.only_in_a_run and task.quote.images:
        return f"{format_usd(task.quote.usd / task.quote.images)} per image"
    return f"{format_usd(task.quote.usd)} per prompt"
