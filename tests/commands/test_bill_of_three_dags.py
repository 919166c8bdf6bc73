"""A month in small: three DAGs, lost responses, another client of the same key. The books must balance to the cent."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from airflow.sdk import DAG, task

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_imagen.sandbox import Charge, Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LOSSES = (
    Fault("reset", billed=True, times=None, probability=0.04),
    Fault("html", status=504, billed=True, times=None, probability=0.03),
    Fault("cut_body", times=None, probability=0.03),
    Fault("reset", times=None, probability=0.03),
    Fault("status", status=500, times=None, probability=0.05),
    Fault("none", times=3),
    Fault("signed_links", times=None, probability=0.1),
    Fault("cut_image", times=None, probability=0.1),
)
MODELS = {"campaign": "flux/schnell", "catalogue": "imagen-3.0-generate-002", "postcards": "imagen-3.0-generate-002"}
PROMPTS = {"campaign": 200, "catalogue": 120, "postcards": 80}


def paint(dag_id: str, folder: Path) -> DAG:
    with DAG(dag_id, schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=[f"{dag_id} number {number}" for number in range(PROMPTS[dag_id])],
            model=MODELS[dag_id],
            output_path=str(folder / "{{ run_id }}"),
            on_failure="accept",
            on_filtered="accept",
            concurrency=8,
            lost_answer_patience_seconds=3,
            thumbnail_pixels=None,
        )
        if dag_id == "postcards":

            @task
            def sketch() -> None:
                ImagenHook().generate_images("A sketch", model="flux/dev")

            sketch()
    return dag


def use_as_another_client(sandbox: Sandbox) -> None:
    """Send what a chat bot with the same key might: with ids of its own, and without any."""
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    for number in range(20):
        body = {"model": "flux/dev", "prompt": f"bot {number}"}
        client.generate("/v1/images/generations", body, client_request_id=f"bot-{number}")
    client.close()
    requests.post(
        f"{sandbox.url}/v1/images/generations",
        json={"model": "flux/srpo", "prompt": "bot"},
        headers={"Authorization": f"Bearer {sandbox.api_key}"},
        timeout=10,
    ).raise_for_status()


def usd(charges: Iterable[Charge]) -> Decimal:
    return sum((charge.usd for charge in charges), Decimal(0))


def of(ledger: list[Charge], start: str) -> list[Charge]:
    return [charge for charge in ledger if (charge.client_request_id or "").startswith(start)]


@pytest.fixture
def ledger(
    run_dag: Callable[..., Any], sandbox: Sandbox, imagen_connection: str, tmp_path: Path
) -> Iterator[list[Charge]]:
    sandbox.configure(balance_usd=Decimal(1000), log_lag_seconds=0.3, logs_per_minute=200, seed=7)
    for fault in LOSSES:
        sandbox.add_fault(fault)
    for dag_id in PROMPTS:
        assert run_dag(paint(dag_id, tmp_path / dag_id)).state == "success"
    sandbox.clear_faults()
    use_as_another_client(sandbox)
    sandbox.configure(log_lag_seconds=0)
    return sandbox.ledger()


def test_bill_and_reconciliation_equal_the_ledger_to_the_cent(
    ledger: list[Charge], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [charge for charge in ledger if not (charge.client_request_id or "").startswith("imagen")]
    folders = [str(tmp_path / dag_id) for dag_id in PROMPTS]
    manifests = sorted(tmp_path.glob("*/*/metadata.jsonl"))
    lines = [json.loads(line) for path in manifests for line in path.read_text().splitlines()]
    Path(lines[0]["path"]).unlink()
    Path(lines[1]["path"]).write_bytes(b"edited")
    capsys.readouterr()

    assert main(["bill", "--json", "--by", "dag", "--by", "task"]) == 0
    bill = json.loads(capsys.readouterr().out)
    assert Decimal(str(bill["total"]["usd"])) == usd(ledger)
    assert bill["total"]["count"] == len(ledger)
    assert Decimal(str(bill["other_clients"]["usd"])) == usd(others)
    assert {(each["dag"], each["task"]): Decimal(str(each["usd"])) for each in bill["own"]["groups"]} == {
        ("campaign", "campaign.paint"): usd(of(ledger, "imagen:campaign:paint:")),
        ("catalogue", "catalogue.paint"): usd(of(ledger, "imagen:catalogue:paint:")),
        ("postcards", "postcards.paint"): usd(of(ledger, "imagen:postcards:paint:")),
        ("postcards", "postcards.sketch"): usd(of(ledger, "imagen:postcards:sketch:hook:")),
    }
    assert bill["ledger"]["is_equal"]
    assert bill["unreadable_rows"] == 0

    assert main(["bill", "--csv", "--reconcile", *folders]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(Decimal(row["usd"]) for row in rows) == usd(ledger)
    counts = Counter(row["category"] for row in rows)
    stored_ids = {line["client_request_id"] for line in lines}
    by_id = {charge.client_request_id: charge for charge in ledger}
    lost_ids = {charge.client_request_id for charge in of(ledger, "imagen:")} - stored_ids
    lost_ids -= {charge.client_request_id for charge in of(ledger, "imagen:postcards:sketch:")}
    assert counts == {
        "stored": len(stored_ids) - 2,
        "gone": 2,
        "lost": len(lost_ids),
        "hook": 1,
        "other client": len(others),
    }
    lost = {row["client_request_id"]: row for row in rows if row["category"] == "lost"}
    assert lost.keys() == lost_ids
    assert all(row["inference_id"] == by_id[name].inference_id and row["reason"] for name, row in lost.items())
    assert {row["reason"] for row in rows if row["category"] == "gone"} == {"file changed", "file missing"}

    assert usd(by_id[name] for name in lost) == sum(Decimal(row["usd"]) for row in lost.values())
    assert ImagenHook().reconcile(folders).to_json()["categories"]["lost"]["count"] == len(lost)
