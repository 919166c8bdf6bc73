"""The DAGs whose task gets a second attempt while the first still runs: one per scenario and concurrency."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from requests.adapters import HTTPAdapter

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PICTURES = os.environ["IMAGEN_OVERLAPS_PICTURES"]
PROMPTS = {4: 40, 32: 160}
"""Prompts by concurrency: enough rounds of requests that Airflow starts the next attempt in the middle."""

INLINE = {"supervisor_killed_32", "suspended_4", "by_hand_twice_32", "cleared_4"}
"""DAGs whose images come as base64 inside the response; those of the others come as URLs."""


def sign_requests(context: Any) -> None:
    """Send the process id of the attempt along, so that the server's records tell the attempts apart."""
    send = HTTPAdapter.send

    def signed(adapter: HTTPAdapter, request: Any, *args: Any, **kwargs: Any) -> Any:
        request.headers["X-Attempt"] = str(os.getpid())
        return send(adapter, request, *args, **kwargs)

    HTTPAdapter.send = signed


for scenario in ("supervisor_killed", "suspended", "by_hand_twice", "cleared"):
    for concurrency, count in PROMPTS.items():
        dag_id = f"{scenario}_{concurrency}"
        # A run of a paused DAG waits in the queue for ``airflow tasks test``; no scheduler touches it.
        with DAG(dag_id, schedule=None, is_paused_upon_creation=scenario == "by_hand_twice"):
            ImagenGenerateOperator(
                task_id="paint",
                prompt=[f"{dag_id} {number:03}" for number in range(count)],
                output_path=f"{PICTURES}/{dag_id}",
                concurrency=concurrency,
                convert_base64_to_url=False if dag_id in INLINE else None,
                on_failure="accept",
                lost_answer_patience_seconds=2,
                pre_execute=sign_requests,
                retries=3,
                retry_delay=timedelta(seconds=1),
            )
