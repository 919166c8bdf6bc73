"""With this provider, through the scheduler: one task for all prompts (64 in flight), and a task for each."""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PICTURES = f"{os.environ['IMAGEN_BENCHMARK_HOME']}/pictures"

for number in (4, 20, 200):
    prompts = [f"Picture {n} of a night's work, a sentence long as prompts are" for n in range(number)]
    with DAG(f"ours_one_task_{number}", schedule=None):
        ImagenGenerateOperator(task_id="paint", prompt=prompts, output_path=PICTURES, concurrency=64)
    with DAG(f"ours_mapped_{number}", schedule=None):
        ImagenGenerateOperator.partial(task_id="paint", output_path=PICTURES).expand(prompt=prompts)
