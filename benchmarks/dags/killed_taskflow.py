"""By hand under kills: a task for each prompt, which writes files atomically and skips those that exist."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, BaseHook, get_current_context, task

FOLDER = Path(os.environ["IMAGEN_BENCHMARK_HOME"]) / "killed" / "killed_taskflow"


@task
def prompts():
    return get_current_context()["dag_run"].conf["prompts"]


@task(task_id="paint", retries=20, retry_delay=timedelta(seconds=1), max_active_tis_per_dagrun=4)
def by_hand(prompt):
    import requests

    file = FOLDER / f"{get_current_context()['ti'].map_index:05}.png"
    if file.exists():  # a previous attempt wrote it
        return str(file)
    api = BaseHook.get_connection("killed_http")
    response = requests.post(
        f"{api.host}/v1/images/generations",
        json={"model": "imagen-3.0-generate-002", "prompt": prompt},
        headers=api.extra_dejson,
        timeout=300,
    )
    response.raise_for_status()
    image = requests.get(response.json()["data"][0]["url"], timeout=300)
    image.raise_for_status()
    part = file.with_suffix(".part")
    part.write_bytes(image.content)
    part.rename(file)
    return str(file)


with DAG("killed_taskflow", schedule=None):
    by_hand.expand(prompt=prompts())
