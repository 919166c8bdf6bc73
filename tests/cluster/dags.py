"""The DAGs the checks trigger. A prompt starts with the name of its DAG, and names the task instance it belongs to."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Asset

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

COMMON = {
    "output_path": "s3://store@pictures/{{ dag.dag_id }}",
    "retries": 3,
    "retry_delay": timedelta(seconds=1),
    "lost_answer_patience_seconds": 2,
}


def prompts(dag: DAG, task_id: str, map_index: int, count: int) -> list[str]:
    return [f"{dag.dag_id} {task_id} {map_index} {number:03}" for number in range(count)]


with DAG("night", schedule=None) as night:
    ImagenGenerateOperator(task_id="catalogue", prompt=prompts(night, "catalogue", -1, 1000), concurrency=16, **COMMON)
    ImagenGenerateOperator.partial(task_id="pages", **COMMON).expand(
        prompt=[prompts(night, "pages", page, 60) for page in range(16)]
    )
    ImagenGenerateOperator.partial(task_id="covers", **COMMON).expand(
        prompt=[prompts(night, "covers", cover, 1)[0] for cover in range(40)]
    )

with DAG("pool", schedule=None) as pool:
    ImagenGenerateOperator.partial(task_id="paint", pool="studio", concurrency=2, **COMMON).expand(
        prompt=[prompts(pool, "paint", index, 10) for index in range(9)]
    )

with DAG("damaged", schedule=None) as damaged:
    ImagenGenerateOperator(
        task_id="paint", prompt=prompts(damaged, "paint", -1, 4), outlets=[Asset("damaged_pictures")], **COMMON
    )

for name in ("worker", "api", "database", "store"):
    with DAG(f"{name}_fails", schedule=None) as fails:
        ImagenGenerateOperator.partial(task_id="paint", on_failure="accept", **COMMON).expand(
            prompt=[prompts(fails, "paint", index, 60) for index in range(4)]
        )
