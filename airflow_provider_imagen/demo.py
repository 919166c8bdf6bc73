"""
Run the example DAG in a temporary Airflow, and show its results.

Unless ``verbose`` is set, Airflow's output goes to a log file, and only our own lines reach the terminal.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = "imagen_quickstart"
CONNECTION_VARIABLE = "AIRFLOW_CONN_IMAGEN_DEFAULT"
SANDBOX_CONNECTION = {"conn_type": "imagen", "extra": {"sandbox": True}}


@dataclass(frozen=True)
class _Outcome:
    """Result of an example run: its XComs, or the error that ended it."""

    records: list[dict[str, Any]]
    summary: dict[str, Any]
    error: BaseException | None = None


def run_demo(
    *,
    prompts: list[str],
    num_images: int,
    aspect_ratio: str,
    seed: int | None,
    model: str,
    output: str,
    verbose: bool,
) -> int:
    """
    Generate images with the example DAG ``imagen_quickstart``, print the results, and return the exit status.

    :param prompts: at least one prompt
    :param output: output folder
    :param verbose: show Airflow's log
    """
    example = _find_example()
    if example is None:
        print(f"Error: example_dags/{EXAMPLE}.py is missing from this installation.", file=sys.stderr)
        return 1
    uses_sandbox = CONNECTION_VARIABLE not in os.environ
    home = Path(tempfile.mkdtemp(prefix="airflow-imagen-demo-"))
    keep_home = False
    try:
        _prepare_home(home, example)
        if uses_sandbox:
            os.environ[CONNECTION_VARIABLE] = json.dumps(SANDBOX_CONNECTION)
        where = "the built-in sandbox" if uses_sandbox else f"the API in {CONNECTION_VARIABLE}"
        print(f"Running {EXAMPLE} in a temporary Airflow against {where} …", flush=True)
        with _quiet(home / "airflow.log", verbose=verbose) as console:
            outcome = _run_example(
                console,
                output=output if "://" in output else str(Path(output).expanduser().absolute()),
                params={
                    "prompts": prompts,
                    "num_images": num_images,
                    "aspect_ratio": aspect_ratio,
                    "seed": seed,
                    "model": model,
                },
            )
        if outcome.error is not None:
            keep_home = not verbose
            print(f"Error: {outcome.error}", file=sys.stderr)
            if keep_home:
                print(f"Airflow's log: {home / 'airflow.log'}", file=sys.stderr)
            return 1
        _show(outcome, output)
        return 0
    finally:
        if uses_sandbox:
            os.environ.pop(CONNECTION_VARIABLE, None)
        if not keep_home:
            shutil.rmtree(home, ignore_errors=True)


def _find_example() -> Path | None:
    """Return the path of the example, in the installed package or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "example_dags", package.parent / "example_dags"):
        if (folder / f"{EXAMPLE}.py").is_file():
            return folder / f"{EXAMPLE}.py"
    return None


def _prepare_home(home: Path, example: Path) -> None:
    """Set up an Airflow home with one DAG; must run before Airflow is imported, as that reads the environment."""
    dags = home / "dags"
    dags.mkdir()
    shutil.copy(example, dags)
    for name in [name for name in os.environ if name.startswith("AIRFLOW__")]:
        del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__DAGS_FOLDER=str(dags),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__UNIT_TEST_MODE="False",
        AIRFLOW__LOGGING__BASE_LOG_FOLDER=str(home / "logs"),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home / 'airflow.db'}",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
    )


@contextmanager
def _quiet(log_file: Path, *, verbose: bool) -> Iterator[TextIO]:
    """Redirect stdout and stderr to a file, and yield a stream that still writes to the terminal."""
    if verbose:
        yield sys.stdout
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    console = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    sink = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield console
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in (*saved, sink):
            os.close(descriptor)
        console.close()


def _run_example(console: TextIO, *, output: str, params: dict[str, Any]) -> _Outcome:
    """Initialize Airflow, run the DAG in this process, and return its outcome."""
    from airflow.utils import db

    db.initdb()
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    from airflow_provider_imagen._compat import AirflowFailException, get_dag_bag

    dag_bag, sync_bag_to_db = get_dag_bag()
    manager: Any = DagBundlesManager
    manager().sync_bundles_to_db()
    bag = dag_bag(dag_folder=os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    if bag.import_errors:
        return _Outcome([], {}, RuntimeError(next(iter(bag.import_errors.values()))))
    sync_bag_to_db(bag, "dags-folder", None)
    dag = bag.dags[EXAMPLE]
    errors: list[BaseException] = []
    paint: Any = dag.task_dict["paint"]

    def execute(context: Any) -> Any:
        try:
            return type(paint).execute(context["task"], context)  # a copy of paint, with its templates rendered
        except Exception as error:
            errors.append(error.args[0] if isinstance(error, AirflowFailException) else error)
            raise

    paint.execute = execute
    progress = logging.getLogger("airflow_provider_imagen.progress")
    if console is not sys.stdout:
        handler = logging.StreamHandler(console)
        handler.setFormatter(logging.Formatter("  %(message)s"))
        progress.addHandler(handler)
    try:
        run: Any = dag.test(run_conf={**params, "output_path": output})
    except Exception as error:  # invalid params, which are rejected before a run exists
        return _Outcome([], {}, error)
    ti = run.get_task_instance("paint")
    if str(ti.state) != "success":
        return _Outcome([], {}, errors[-1] if errors else RuntimeError(f"the task ended in state {ti.state}"))
    return _Outcome(ti.xcom_pull(task_ids="paint", key="images"), ti.xcom_pull(task_ids="paint", key="summary"))


def _show(outcome: _Outcome, output: str) -> None:
    """Print each image and the totals."""
    records = outcome.records if isinstance(outcome.records, list) else []
    print()
    for record in records:
        prompt = " ".join(record["prompt"].split())
        cost = format_usd(record["usd"]) if record["usd"] is not None else "cost unknown"
        print(f"{prompt if len(prompt) <= 70 else prompt[:69] + '…'}")
        print(f"  url   {record['url'] or '(none, inline image)'}")
        print(f"  file  {_shown_path(record['path'])}")
        print(f"  size  {record['width']}x{record['height']}, {record['bytes'] / 1e6:.1f} MB, {record['mime_type']}")
        print(f"  cost  {cost}")
    summary = outcome.summary
    about = "about " if summary["usd_is_estimate"] else ""
    plural = "s" if summary["made"] != 1 else ""
    print(
        f"\n{summary['made']} image{plural} in {output} for {about}{format_usd(summary['usd_spent'])}, "
        f"{summary['seconds']:.1f} s. Manifest: {_shown_path(summary['manifest'])}"
    )


def _shown_path(path: str) -> str:
    """Return a path relative to the working directory, or unchanged if it is not below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
