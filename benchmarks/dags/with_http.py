"""With ``HttpOperator``, through the scheduler: a task for each prompt, which posts but does not download the image."""

from __future__ import annotations

import json

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG

for number in (4, 20, 200):
    prompts = [f"Picture {n} of a night's work, a sentence long as prompts are" for n in range(number)]
    for name, deferrable in (("http_mapped", False), ("http_deferrable_mapped", True)):
        with DAG(f"{name}_{number}", schedule=None):
            HttpOperator.partial(
                task_id="post",
                http_conn_id="benchmark_http",
                endpoint="/v1/images/generations",
                headers={"content-type": "application/json"},
                deferrable=deferrable,
            ).expand(data=[json.dumps({"model": "imagen-3.0-generate-002", "prompt": prompt}) for prompt in prompts])
