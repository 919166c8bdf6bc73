"""The DAGs that are interrupted. Each DAG's prompts start with its name, which ends with its concurrency."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from requests.adapters import HTTPAdapter

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PICTURES = os.environ["IMAGEN_OVERLAPS_PICTURES"]
COMMON = {"on_failure": "accept", "lost_answer_patience_seconds": 2, "retry_delay": timedelta(seconds=1)}
INLINE = {"convert_base64_to_url": False}
"""Arguments for images that come as base64 inside the response, and not as URLs."""


def sign_requests(context: Any) -> None:
    """Add the process id of the attempt to requests, so that the server's records distinguish the attempts."""
    send = HTTPAdapter.send

    def signed(adapter: HTTPAdapter, request: Any, *args: Any, **kwargs: Any) -> Any:
        request.headers["X-Attempt"] = str(os.getpid())
        return send(adapter, request, *args, **kwargs)

    HTTPAdapter.send = signed


def make_dag(dag_id: str, *, prompts: int, is_paused: bool = False, **arguments: Any) -> None:
    with DAG(dag_id, schedule=None, is_paused_upon_creation=is_paused):
        ImagenGenerateOperator(
            task_id="paint",
            prompt=[f"{dag_id} {number:03}" for number in range(prompts)],
            output_path=f"{PICTURES}/{dag_id}",
            concurrency=int(dag_id.rpartition("_")[2]),
            pre_execute=sign_requests,
            **{**COMMON, "retries": 3, **arguments},
        )


# Enough prompts that Airflow starts the second attempt while the first still has some left.
make_dag("supervisor_killed_4", prompts=40)
make_dag("supervisor_killed_32", prompts=160, **INLINE)
make_dag("suspended_4", prompts=40, **INLINE)
make_dag("suspended_32", prompts=128)
make_dag("suspended_for_long_4", prompts=24)
make_dag("suspended_for_long_32", prompts=96, **INLINE)
make_dag("cleared_4", prompts=40)
make_dag("cleared_32", prompts=128, **INLINE)

# The scheduler ignores the run of a paused DAG, so it stays queued for ``airflow tasks test``.
make_dag("by_hand_4", prompts=80, is_paused=True, **INLINE)
make_dag("by_hand_32", prompts=224, is_paused=True)
make_dag("by_hand_together_4", prompts=24, is_paused=True)

make_dag("timed_out_8", prompts=24, retries=0, execution_timeout=timedelta(seconds=12))
for seconds in (25, 60):
    # Airflow keeps starting attempts that cannot begin without the api-server.
    make_dag(f"api_away_{seconds}_s_4", prompts=24, retries=20)
