"""``airflow dags test`` masks nothing, so whatever it shows is what this package itself keeps quiet about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

DAG_FILE = """
from airflow.sdk import DAG
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

with DAG("quiet", schedule=None):
    ImagenGenerateOperator(
        task_id="paint", prompt=["good", "dead link", "refused"], output_path={folder!r}, on_failure="accept"
    )
"""


@pytest.mark.slow
def test_no_output_and_no_file_of_airflow_dags_test_holds_the_key_or_a_signature(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    home, pictures = tmp_path / "home", tmp_path / "pictures"
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "quiet.py").write_text(DAG_FILE.format(folder=str(pictures)))
    sandbox.add_fault(Fault("signed_links", times=None))
    sandbox.add_fault(Fault("expired", on="download", prompt="dead link", times=None))
    sandbox.add_fault(
        Fault("status", status=400, message=f"not with key {sandbox.api_key}", prompt="refused", times=None)
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_IMAGEN_DEFAULT": json.dumps(
            {"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key}
        ),
    }
    output = ""
    for command in (["db", "migrate"], ["dags", "test", "quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        output += done.stdout + done.stderr

    assert len(list(pictures.glob("*.png"))) == 1
    assert "Image 1 of 3" in output
    assert "not with key ***" in output
    queries = [request.query for request in sandbox.seen() if request.host == "cdn"]
    signatures = {value for query in queries for values in query.values() for value in values if len(value) > 15}
    assert signatures
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (sandbox.api_key, *signatures):
        assert secret not in output
        assert not [content for content in files if secret.encode() in content]
