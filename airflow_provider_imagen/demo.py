"""
Run the example DAG in a temporary Airflow, and show its results in the terminal or in the Airflow UI.

Unless ``verbose`` is set, Airflow's output goes to a log file, and only our own lines reach the terminal.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from airflow_provider_imagen.demo_ui import USERNAME, DemoUI, open_browser
from airflow_provider_imagen.examples import find_examples
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
    run_id: str = ""
    error: BaseException | None = None


def run_demo(
    *,
    prompts: list[str],
    num_images: int,
    aspect_ratio: str,
    seed: int | None,
    model: str,
    output: str,
    ui: bool,
    verbose: bool,
) -> int:
    """
    Generate images with the example DAG ``imagen_quickstart``, print the results, and return the exit status.

    :param prompts: at least one prompt
    :param output: output folder
    :param ui: then serve the Airflow UI with the images until SIGINT or SIGTERM
    :param verbose: show Airflow's log, and raise errors instead of printing them
    """
    example = find_examples().get(EXAMPLE)
    if example is None:
        print(f"Error: example_dags/{EXAMPLE}.py is missing from this installation.", file=sys.stderr)
        return 1
    _end_like_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    uses_sandbox = CONNECTION_VARIABLE not in os.environ
    home = Path(tempfile.mkdtemp(prefix="airflow-imagen-demo-"))
    log = home / "airflow.log"
    keep_home = False
    try:
        _prepare_home(home, example.path)
        server = DemoUI(home) if ui else None
        if uses_sandbox:
            os.environ[CONNECTION_VARIABLE] = json.dumps(SANDBOX_CONNECTION)
        where = "the built-in sandbox" if uses_sandbox else f"the API in {CONNECTION_VARIABLE}"
        print(f"Running {EXAMPLE} in a temporary Airflow against {where} …", flush=True)
        with _quiet(log, verbose=verbose) as console:
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
            raise outcome.error
        _show(outcome, output, has_urls=not uses_sandbox)
        if server is not None:
            print("\nStarting the Airflow UI …", flush=True)
            with _quiet(log, verbose=verbose) as console:
                _serve(server, outcome.run_id, console)
        return 0
    except Exception as error:
        if verbose:
            raise
        keep_home = True
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        print(f"Error: {error}", f"Airflow's log: {log}", sep="\n", file=sys.stderr)
        return 1
    finally:
        if uses_sandbox:
            os.environ.pop(CONNECTION_VARIABLE, None)
        if not keep_home:
            shutil.rmtree(home, ignore_errors=True)


def _end_like_ctrl_c(*signals: signal.Signals) -> None:
    """Make signals that are not ignored raise ``KeyboardInterrupt``, so that the temporary home is removed."""
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)


def _prepare_home(home: Path, example: Path) -> None:
    """Set up an Airflow home with one DAG; must run before Airflow is imported, as that reads the environment."""
    dags = home / "dags"
    dags.mkdir()
    shutil.copy(example, dags)
    tempfile.tempdir = str(home)  # where the gallery, for one, keeps its previews
    for name in [name for name in os.environ if name.startswith("AIRFLOW__")]:
        del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW_CONFIG=str(home / "airflow.cfg"),
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
        return _Outcome([], {}, error=RuntimeError(next(iter(bag.import_errors.values()))))
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
        return _Outcome([], {}, error=error)
    ti = run.get_task_instance("paint")
    if str(ti.state) != "success":
        return _Outcome([], {}, error=errors[-1] if errors else RuntimeError(f"the task ended in state {ti.state}"))
    images, summary = (ti.xcom_pull(task_ids="paint", key=key) for key in ("images", "summary"))
    return _Outcome(images, summary, run.run_id)


def _serve(server: DemoUI, run_id: str, console: TextIO) -> None:
    """Serve the UI, and once it is ready, print its address and login and open it in a browser."""

    def announce(url: str) -> None:
        print(f"Address:  {url}", f"Username: {USERNAME}", f"Password: {server.password}", sep="\n", file=console)
        print("Press Ctrl-C to stop.", file=console, flush=True)
        open_browser(url)

    server.serve(dag_id=EXAMPLE, run_id=run_id, on_ready=announce)


def _show(outcome: _Outcome, output: str, *, has_urls: bool) -> None:
    """
    Print each image and the totals.

    :param has_urls: whether the images' URLs work after this command has ended, unlike those of the built-in sandbox
    """
    records = outcome.records if isinstance(outcome.records, list) else []
    print()
    for record in records:
        prompt = " ".join(record["prompt"].split())
        cost = format_usd(record["usd"]) if record["usd"] is not None else "cost unknown"
        print(f"{prompt if len(prompt) <= 70 else prompt[:69] + '…'}")
        print(f"  file  {_shown_path(record['path'])}")
        print(f"  size  {record['width']}x{record['height']}, {record['bytes'] / 1e6:.1f} MB, {record['mime_type']}")
        print(f"  cost  {cost}")
        if has_urls:
            print(f"  url   {record['url'] or '(none, inline image)'}")
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
