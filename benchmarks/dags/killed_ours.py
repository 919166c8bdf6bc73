"""This provider under kills: one task for all prompts, with and without resending lost requests; a task for each."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, get_current_context, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

FOLDER = f"{os.environ['IMAGEN_BENCHMARK_HOME']}/killed"
COMMON = {
    "task_id": "paint",
    "imagen_conn_id": "killed",
    "lost_answer_patience_seconds": 2,  # the benchmark's API logs a request at once
    "retries": 20,
    "retry_delay": timedelta(seconds=1),
}


@task
def prompts():
    return get_current_context()["dag_run"].conf["prompts"]


for dag_id, arguments in (("killed_ours_one_task", {}), ("killed_ours_resend", {"on_lost_answer": "resend"})):
    with DAG(dag_id, schedule=None):
        ImagenGenerateOperator(prompt=prompts(), output_path=f"{FOLDER}/{dag_id}", **COMMON, **arguments)

with DAG("killed_ours_mapped", schedule=None):
    ImagenGenerateOperator.partial(
        output_path=f"{FOLDER}/killed_ours_mapped", max_active_tis_per_dagrun=4, **COMMON
    ).expand(prompt=prompts())
