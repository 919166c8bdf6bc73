"""The DAGs the checks trigger. The prompts decide what goes wrong: the sandbox's faults match words in them."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_imagen.notifications.imagen import ImagenNotifier
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PICTURES = os.environ["IMAGEN_SCHEDULER_PICTURES"]
COMMON = {
    "task_id": "paint",
    "concurrency": 1,
    "retries": 3,
    "retry_delay": timedelta(seconds=1),
    "lost_answer_patience_seconds": 2,
}

PROMPTS = {
    "task_killed": ["a1 good", "a2 good", "a3 good", "a4 held", "a5 good"],
    "task_killed_after_billing": ["b1 good", "b2 billed"],
    "worker_killed": ["c1 good", "c2 slow", "c3 good"],
    "cleared": ["d1 good", "d2 good"],
    "failed_and_cleared": ["e1 good", "e2 refused"],
    "rate_limited": ["f1 limited"],
}

for name, prompts in PROMPTS.items():
    with DAG(name, schedule=None):
        ImagenGenerateOperator(prompt=prompts, output_path=f"{PICTURES}/{name}", **COMMON)


def write_message(context):
    """Write the message about a run, in the DAG processor."""
    Path(PICTURES, f"{context['imagen'].dag_id}.txt").write_text(context["imagen"].subject, encoding="utf-8")


with DAG("mapped", schedule=None, on_success_callback=ImagenNotifier(write_message)):
    ImagenGenerateOperator.partial(output_path=f"{PICTURES}/mapped", **COMMON).expand(
        prompt=["g0 good", "g1 stuck", "g2 good"]
    )
