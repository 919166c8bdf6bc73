"""Outlet events: assets get the summary, aliases the output folder of the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.operators.outlets import fill_outlets
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


def events_of(dag_id: str) -> list[Any]:
    """Read the asset events of a DAG from Airflow's database: asset, aliases and extra, the oldest first."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        events = session.scalars(
            select(AssetEvent).where(AssetEvent.source_dag_id == dag_id).order_by(AssetEvent.id)
        ).all()
        return [(event.asset.uri, [alias.name for alias in event.source_aliases], event.extra) for event in events]


def test_an_asset_gets_the_summary(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    with DAG("plain_asset", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint", prompt="a fox", output_path=str(tmp_path), outlets=[Asset("plain_asset_pictures")]
        )
    run = run_dag(dag)

    summary = run.get_task_instance("paint").xcom_pull(task_ids="paint", key="summary")
    assert events_of("plain_asset") == [("plain_asset_pictures", [], summary)]
    assert Path(summary["manifest"]).is_file()


def test_an_alias_becomes_the_folder_of_the_run(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    with DAG("alias", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=["a fox", "a heron"],
            output_path=f"{tmp_path}/{{{{ run_id }}}}",
            outlets=[AssetAlias("alias_pictures"), Asset("alias_neighbour")],
        )
    run = run_dag(dag)

    summary = run.get_task_instance("paint").xcom_pull(task_ids="paint", key="summary")
    events = {uri: (aliases, extra) for uri, aliases, extra in events_of("alias")}
    assert events == {
        f"file://{tmp_path}/{run.run_id}": (["alias_pictures"], summary),
        "alias_neighbour": ([], summary),
    }
    assert summary["made"] == 2


def test_without_a_folder_an_alias_gets_no_event_and_the_task_warns(
    run_dag: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with DAG("alias_of_nothing", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint", prompt="a fox", outlets=[AssetAlias("alias_of_nothing"), Asset("beside_nothing")]
        )
    with caplog.at_level(logging.WARNING, "airflow_provider_imagen.operators.outlets"):
        run = run_dag(dag)

    assert str(run.state) == "success"
    assert [uri for uri, _, _ in events_of("alias_of_nothing")] == ["beside_nothing"]
    assert "Asset alias alias_of_nothing gets no event" in caplog.text


def test_every_mapped_instance_reports_its_own_images(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    with DAG("mapped_alias", schedule=None) as dag:
        ImagenGenerateOperator.partial(task_id="paint", outlets=[AssetAlias("mapped_pictures")]).expand_kwargs(
            [{"prompt": name, "output_path": f"{tmp_path}/{name}"} for name in ("fox", "heron")]
        )
    run_dag(dag)

    events = {uri: (aliases, extra["output_path"], extra["made"]) for uri, aliases, extra in events_of("mapped_alias")}
    assert events == {
        f"file://{tmp_path}/{name}": (["mapped_pictures"], f"{tmp_path}/{name}", 1) for name in ("fox", "heron")
    }


def test_a_failed_task_emits_no_asset_event(run_dag: Callable[..., Any], tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    with DAG("failed_alias", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=["good", "bad"],
            output_path=str(tmp_path),
            outlets=[AssetAlias("failed_pictures"), Asset("failed_asset")],
        )
    assert str(run_dag(dag).state) == "failed"

    assert events_of("failed_alias") == []


def test_outlets_that_cannot_be_filled_fail_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pictures are paid for by then: a folder too long for an asset, or an outlet of another kind."""
    from airflow.sdk import ObjectStoragePath

    folder = ObjectStoragePath(f"file://{tmp_path}/{'long/' * 400}")
    with caplog.at_level(logging.WARNING, "airflow_provider_imagen.operators.outlets"):
        fill_outlets([AssetAlias("too_long"), object()], {}, summary={"made": 1}, folder=folder)

    assert "is not a valid asset URI" in caplog.text
