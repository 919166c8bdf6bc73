"""
One task for all prompts, by hand (``floor``) and with this provider (``ours``), each measuring itself.

The run's conf sets the number of prompts and of requests in flight.
"""

from __future__ import annotations

import json
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

HOME = Path(os.environ["IMAGEN_BENCHMARK_HOME"])
PICTURES = HOME / "pictures"


def _conf(context):
    return context["dag_run"].conf or {}


@contextmanager
def _measured(context):
    """Record what the body of a task cost its process, with anything the body adds to the yielded mapping."""
    conf, ti = _conf(context), context["ti"]
    more = {"started_at": time.time(), "start_mib": _memory_mib("VmRSS")}
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    yield more
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {
        "task": ti.task_id,
        "prompts": conf["prompts"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": _memory_mib("VmHWM"),
        **more,
    }
    name = f"{ti.task_id}-{ti.map_index}-{ti.try_number}.json"
    (HOME / "measured" / name).write_text(json.dumps(found))


def _memory_mib(name):
    """Return the resident memory of this process: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


class MeasuredOperator(ImagenGenerateOperator):
    """The operator, measured, with its arguments from the run's conf."""

    def execute(self, context):
        conf = _conf(context)
        self.concurrency = conf.get("concurrency", 4)
        if conf.get("inline"):
            self.convert_base64_to_url = False
        from airflow_provider_imagen.journal import log as journal
        from airflow_provider_imagen.operators import execution, publish

        if not conf.get("progress", True):
            publish.PROGRESS_INTERVAL_SECONDS = float("inf")
        opened, published = [], []

        class CountingPublisher(publish.Publisher):
            def publish_progress(self, *args):
                published.append(args)
                super().publish_progress(*args)

        class KnownJournal(journal.Journal):
            def __init__(self, store, **kwargs):
                super().__init__(journal.NoStore() if conf.get("journal") == "memory" else store, **kwargs)
                opened.append(self)

        execution.Journal, execution.Publisher = KnownJournal, CountingPublisher
        with _measured(context) as more:
            urls = super().execute(context)
            more["journal_writes"] = opened[0].writes
            more["progress_publications"] = len(published)
        return urls


@task
def prompts():
    conf = _conf(get_current_context())
    return [f"Picture {number} of a night's work, a sentence long as prompts are" for number in range(conf["prompts"])]


with DAG("warm_up", schedule=None):

    @task
    def nothing():
        pass

    nothing()

with DAG("floor", schedule=None):

    @task
    def floor(made):
        from benchmarks.bare import paint

        context = get_current_context()
        conf = _conf(context)
        with _measured(context):
            count = paint(
                made,
                base_url=conf["base_url"],
                folder=str(PICTURES),
                concurrency=conf["concurrency"],
                inline=conf.get("inline", False),
            )
        assert count == len(made)

    floor(prompts())

with DAG("ours", schedule=None):
    MeasuredOperator(task_id="ours", prompt=prompts(), output_path=str(PICTURES))
