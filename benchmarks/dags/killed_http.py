"""``HttpOperator`` under kills: a task for each prompt, which leaves the image's URL in XCom."""

from __future__ import annotations

import json
from datetime import timedelta

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG, get_current_context, task


@task
def bodies():
    conf = get_current_context()["dag_run"].conf
    return [json.dumps({"model": "imagen-3.0-generate-002", "prompt": prompt}) for prompt in conf["prompts"]]


with DAG("killed_http", schedule=None):
    HttpOperator.partial(
        task_id="paint",
        http_conn_id="killed_http",
        endpoint="/v1/images/generations",
        headers={"content-type": "application/json"},
        response_filter=lambda response: response.json()["data"][0]["url"],
        retries=20,
        retry_delay=timedelta(seconds=1),
        max_active_tis_per_dagrun=4,
    ).expand(data=bodies())
