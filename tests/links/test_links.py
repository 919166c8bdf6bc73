"""The way from a task instance to its pictures."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_imagen.links.gallery_link import PicturesLink
from airflow_provider_imagen.links.gallery_urls import gallery_root, image_address, task_address
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox


@pytest.mark.parametrize(
    ("base_url", "root"),
    [
        ("", "/imagen"),
        ("http://airflow.example:8080", "/imagen"),
        ("https://airflow.example/", "/imagen"),
        ("https://airflow.example/data/airflow/", "/data/airflow/imagen"),
    ],
)
def test_the_gallery_is_below_airflows_base_path(monkeypatch: pytest.MonkeyPatch, base_url: str, root: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)

    assert gallery_root() == root


def test_ids_survive_the_url_whatever_they_contain() -> None:
    ids = {"dag_id": "a&b=c", "run_id": "manual__2026-11-21T10:00:00+00:00", "task_id": "group.é #?%"}

    address = urlsplit(task_address(root="/imagen", **ids, map_index=3))

    assert address.path == "/imagen/task"
    assert {name: value for name, (value,) in parse_qs(address.query).items()} == {**ids, "map_index": "3"}


def test_a_url_cannot_end_a_markdown_link() -> None:
    address = image_address(
        root="/imagen",
        dag_id="a)b",
        run_id="r|(",
        task_id="t>",
        map_index=-1,
        prompt_index=0,
        image_index=1,
        size="full",
    )

    assert not set(address) & set("()|<> \n")


def _as_the_web_server_has_it(dag: Any) -> Any:
    """Store a DAG and read it back, as the web server does."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def _stored_link(run: Any) -> str | None:
    return run.get_task_instance("paint").xcom_pull(task_ids="paint", key=PicturesLink.xcom_key)


def _link(dag: Any, run: Any) -> str | None:
    """Ask for the link as the web server does."""
    return _as_the_web_server_has_it(dag).get_task("paint").get_extra_links(run.get_task_instance("paint"), "Pictures")


def test_the_web_server_builds_the_link_of_a_task_so_none_is_stored(
    run_dag: Callable[..., Any], imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    with DAG("linked", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt="one", output_path=str(tmp_path))
    run = run_dag(dag)

    assert _stored_link(run) is None
    assert _link(dag, run) == task_address(root="/imagen", dag_id="linked", run_id=run.run_id, task_id="paint")


def test_a_subclass_unknown_to_the_web_server_stores_its_link(
    run_dag: Callable[..., Any], imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    class Ours(ImagenGenerateOperator):
        pass

    with DAG("linked_subclass", schedule=None) as dag:
        Ours(task_id="paint", prompt="one", output_path=str(tmp_path))
    run = run_dag(dag)

    address = task_address(root="/imagen", dag_id="linked_subclass", run_id=run.run_id, task_id="paint")
    assert _stored_link(run) == _link(dag, run) == address


def test_a_subclass_with_links_of_its_own_keeps_them() -> None:
    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    class Without(ImagenGenerateOperator):
        operator_extra_links = ()

    class With(ImagenGenerateOperator):
        operator_extra_links = (PicturesLink(), PicturesLink())

    class Inherited(With):
        pass

    assert Without.operator_extra_links == ()
    assert Inherited.operator_extra_links is With.operator_extra_links


@pytest.mark.slow
def test_failed_and_retried_tasks_have_the_same_link(
    run_dag: Callable[..., Any], imagen_connection: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    def finished(dag_id: str, **arguments: Any) -> tuple[Any, Any]:
        with DAG(dag_id, schedule=None) as dag:
            ImagenGenerateOperator(task_id="paint", prompt="one", retry_delay=timedelta(0), **arguments)
        return dag, run_dag(dag)

    sandbox.add_fault(Fault("fewer", count=1))
    failed = finished("linked_failed", num_images=3, output_path=str(tmp_path))
    sandbox.add_fault(Fault("cut_image", on="download", times=5))
    retried = finished("linked_retried", retries=2, output_path=str(tmp_path))

    assert str(failed[1].state) == "failed"
    assert str(retried[1].state) == "success"
    for dag, run in (failed, retried):
        assert _link(dag, run) == task_address(root="/imagen", dag_id=run.dag_id, run_id=run.run_id, task_id="paint")


def test_airflow_keeps_the_link_when_it_stores_the_dag(run_dag: Callable[..., Any]) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.decorators.imagen import imagen_task
    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    with DAG("serialized_links", schedule=None) as dag:
        ImagenGenerateOperator(task_id="operator", prompt="one")
        ImagenGenerateOperator.partial(task_id="mapped").expand(prompt=["one", "two"])

        @imagen_task
        def decorated() -> str:
            return "one"

        decorated()

    stored = _as_the_web_server_has_it(dag)
    for task_id in ("operator", "mapped", "decorated"):
        assert stored.get_task(task_id).extra_links == ["Pictures"], task_id
