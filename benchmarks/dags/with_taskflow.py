"""By hand, through the scheduler: a task for each prompt, and tasks that do nothing."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task

PICTURES = Path(os.environ["IMAGEN_BENCHMARK_HOME"]) / "pictures"


@task
def empty(prompt):
    pass


@task
def by_hand(prompt):
    import requests

    base_url = get_current_context()["dag_run"].conf["base_url"]
    body = {"model": "imagen-3.0-generate-002", "prompt": prompt}
    response = requests.post(f"{base_url}/v1/images/generations", json=body, timeout=300)
    response.raise_for_status()
    url = response.json()["data"][0]["url"]
    (PICTURES / url.rpartition("/")[2]).write_bytes(requests.get(url, timeout=300).content)
    return url


for number in (4, 20, 200):
    prompts = [f"Picture {n} of a night's work, a sentence long as prompts are" for n in range(number)]
    with DAG(f"taskflow_mapped_{number}", schedule=None):
        by_hand.expand(prompt=prompts)
    with DAG(f"empty_mapped_{number}", schedule=None):
        empty.expand(prompt=prompts)
