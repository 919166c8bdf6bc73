"""The operator, run by a real Airflow against the sandbox."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from PIL import Image

from airflow_provider_imagen._compat import HAS_RETRY_POLICY
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ChargedButLostError,
    EmptyResultError,
    FilteredError,
    InvalidArgumentsError,
    ItemsFailedError,
    ModelWithdrawnError,
)
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")

RACCOON = "A raccoon eating ice-cream"


class Painting:
    """Run one operator in a DAG of its own and look at what it left."""

    def __init__(self, run_dag: Callable[..., Any], recorded: Callable[..., Any]) -> None:
        self._run_dag = run_dag
        self._recorded = recorded
        self._number = 0
        self.errors: list[BaseException] = []
        self.run: Any = None

    def __call__(self, *, dag_options: dict[str, Any] | None = None, **arguments: Any) -> Painting:
        self._number += 1
        self.errors = []
        with DAG(f"painting_{id(self)}_{self._number}", schedule=None, **(dag_options or {})) as dag:
            self._recorded(task_id="paint", errors=self.errors, retry_delay=timedelta(seconds=0), **arguments)
        self.run = self._run_dag(dag)
        return self

    def _ti(self) -> Any:
        return self.run.get_task_instance("paint")

    @property
    def state(self) -> str:
        return str(self._ti().state)

    @property
    def urls(self) -> list[str]:
        return self._ti().xcom_pull(task_ids="paint")

    @property
    def images(self) -> list[dict[str, Any]]:
        return self._ti().xcom_pull(task_ids="paint", key="images")

    @property
    def summary(self) -> dict[str, Any]:
        return self._ti().xcom_pull(task_ids="paint", key="summary")

    @property
    def error(self) -> BaseException:
        return self.errors[-1]


@pytest.fixture
def paint(run_dag: Callable[..., Any], recorded: Callable[..., Any]) -> Painting:
    return Painting(run_dag, recorded)


def test_a_prompt_becomes_a_stored_image(paint: Painting, sandbox: Sandbox, tmp_path: Path) -> None:
    paint(prompt=RACCOON, output_path=str(tmp_path / "pictures"))

    assert paint.state == "success"
    (url,) = paint.urls
    (image,) = paint.images
    assert image["url"] == url
    assert url.startswith(sandbox.cdn_url)
    assert image["prompt"] == RACCOON
    assert image["model"] == "imagen-3.0-generate-002"
    with Image.open(image["path"]) as picture:
        picture.load()
        assert picture.size == (image["width"], image["height"])
    assert Path(image["path"]).stat().st_size == image["bytes"]
    (charge,) = sandbox.ledger()
    assert image["client_request_id"] == charge.client_request_id
    assert image["usd"] == float(charge.usd)
    assert paint.summary["usd_spent"] == float(charge.usd)


def test_without_an_output_path_only_urls_are_returned(paint: Painting, sandbox: Sandbox) -> None:
    paint(prompt=RACCOON, num_images=2)

    assert len(paint.urls) == 2
    assert [image["path"] for image in paint.images] == [None, None]
    assert sandbox.seen("/v1/images/generations")[0].json["num_images"] == 2
    assert not [request for request in sandbox.seen() if request.host == "cdn"]


def test_a_list_of_prompts_gives_urls_in_prompt_order(paint: Painting, tmp_path: Path) -> None:
    paint(
        prompt=["one", {"prompt": "two", "num_images": 2, "name": "pair"}, "three"],
        aspect_ratio="16:9",
        output_path=str(tmp_path),
    )

    assert [(i["prompt_index"], i["image_index"], i["prompt"]) for i in paint.images] == [
        (0, 0, "one"),
        (1, 0, "two"),
        (1, 1, "two"),
        (2, 0, "three"),
    ]
    assert paint.urls == [image["url"] for image in paint.images]
    assert all(image["width"] > image["height"] for image in paint.images)
    assert [line["file_name"] for line in _manifest(tmp_path)] == [Path(i["path"]).name for i in paint.images]
    assert "pair" in Path(paint.images[1]["path"]).name


def test_every_documented_field_is_a_template(run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path) -> None:
    with DAG("templates", schedule=None, params={"animal": "fox", "n": 2, "seed": 7, "ratio": "3:4"}) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=[{"prompt": "A {{ params.animal }}", "name": "{{ params.animal }}"}, "No {{ params.animal }}"],
            model="{{ 'imagen-3.0-' ~ 'generate-002' }}",
            num_images="{{ params.n }}",
            aspect_ratio="{{ params.ratio }}",
            seed="{{ params.seed }}",
            parameters={"safety_setting": "block_{{ 'only' }}_high"},
            output_path=f"{tmp_path}/{{{{ run_id }}}}",
            filename="{{ params.animal }}-{index}-{image}.{extension}",
        )
    run = run_dag(dag, run_conf=None)

    assert str(run.state) == "success"
    bodies = sorted((request.json for request in sandbox.seen("/v1/images/generations")), key=lambda b: b["prompt"])
    assert [body["prompt"] for body in bodies] == ["A fox", "No fox"]
    for body in bodies:
        assert body["num_images"] == 2
        assert body["aspect_ratio"] == "3:4"
        assert body["seed"] == 7
        assert body["safety_setting"] == "block_only_high"
    assert (tmp_path / run.run_id / "fox-000-0.png").is_file()


def test_expanding_over_prompts_creates_a_labelled_task_for_each(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    with DAG("mapped", schedule=None, params={"animal": "fox"}) as dag:
        ImagenGenerateOperator.partial(
            task_id="one_each", map_index_template="{{ task.prompt }}", aspect_ratio="3:4"
        ).expand(prompt=["a {{ params.animal }}", "a heron"])
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert _labels(run, "one_each") == {0: "a fox", 1: "a heron"}
    assert {request.json["prompt"] for request in sandbox.seen("/v1/images/generations")} == {"a fox", "a heron"}
    assert {request.json["aspect_ratio"] for request in sandbox.seen("/v1/images/generations")} == {"3:4"}


def test_expanding_over_arguments_gives_each_task_its_own(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    with DAG("mapped_arguments", schedule=None) as dag:

        @task
        def rows() -> list[dict[str, Any]]:
            return [{"prompt": "a fox", "num_images": 2}, {"prompt": "a heron", "aspect_ratio": "9:16", "seed": 7}]

        ImagenGenerateOperator.partial(
            task_id="one_each", map_index_template="{{ task.prompt }}, {{ task.num_images or 1 }}"
        ).expand_kwargs(rows())
    run = run_dag(dag)

    assert _labels(run, "one_each") == {0: "a fox, 2", 1: "a heron, 1"}
    fox, heron = sorted((request.json for request in sandbox.seen("/v1/images/generations")), key=lambda b: b["prompt"])
    assert (fox["num_images"], fox.get("seed")) == (2, None)
    assert (heron["aspect_ratio"], heron["seed"]) == ("9:16", 7)


def test_the_urls_and_the_records_of_a_task_can_be_expanded_over(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    with DAG("mapped_downstream", schedule=None) as dag:

        @task
        def fetch(url: str) -> str:
            return url

        @task
        def records(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return images

        @task(map_index_template="{{ title }}")
        def show(image: dict[str, Any]) -> str:
            from airflow.sdk import get_current_context

            get_current_context()["title"] = image["prompt"]
            return image["path"]

        both = ImagenGenerateOperator(task_id="both", prompt=["one", "two"], num_images=2, output_path=str(tmp_path))
        fetch.expand(url=both.output)
        show.expand(image=records(both.output["images"]))
    run = run_dag(dag)

    assert str(run.state) == "success"
    ti = run.get_task_instance("both")
    urls, images = ti.xcom_pull(task_ids="both"), ti.xcom_pull(task_ids="both", key="images")
    assert [ti.xcom_pull(task_ids="fetch", map_indexes=index) for index in range(4)] == urls
    assert [ti.xcom_pull(task_ids="show", map_indexes=index) for index in range(4)] == [each["path"] for each in images]
    assert _labels(run, "show") == {0: "one", 1: "one", 2: "two", 3: "two"}


def _labels(run: Any, task_id: str) -> dict[int, str]:
    """Give what the UI shows for each mapped instance instead of its number."""
    return {ti.map_index: ti._rendered_map_index for ti in run.get_task_instances() if ti.task_id == task_id}


def test_an_empty_table_cell_leaves_its_field_to_the_arguments(paint: Painting, sandbox: Sandbox) -> None:
    paint(prompt=[{"prompt": "a fox", "seed": "", "name": "", "num_images": "2"}], seed=7)

    assert paint.state == "success"
    (request,) = sandbox.seen("/v1/images/generations")
    assert (request.json["seed"], request.json["num_images"]) == (7, 2)


def test_an_empty_list_skips_the_task(paint: Painting, sandbox: Sandbox) -> None:
    paint(prompt=[])

    assert paint.state == "skipped"
    assert sandbox.seen() == []


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": 7}, "prompt", "text"),
        ({"prompt": ["ok", None]}, "prompt[1]", "text"),
        ({"prompt": "x" * 401}, "prompt", "401"),
        ({"prompt": "x", "num_images": 0}, "num_images", "1 to 4"),
        ({"prompt": "x", "num_images": 5}, "num_images", "1 to 4"),
        ({"prompt": "x", "num_images": True}, "num_images", "1 to 4"),
        ({"prompt": "x", "aspect_ratio": "2:1"}, "aspect_ratio", "16:9"),
        ({"prompt": "x", "seed": -1}, "seed", "4294967295"),
        ({"prompt": "x", "seed": 4294967296}, "seed", "4294967295"),
        ({"prompt": "x", "seed": 1, "add_watermark": True}, "seed", "add_watermark"),
        ({"prompt": "x", "parameters": {"image_size": "square"}}, "image_size", "aspect_ratio"),
        ({"prompt": [{"prompt": "x", "aspekt_ratio": "1:1"}]}, "prompt[0].aspekt_ratio", "aspect_ratio"),
        ({"prompt": "x", "convert_base64_to_url": False}, "convert_base64_to_url", "output_path"),
        ({"prompt": "x", "concurrency": 0}, "concurrency", "1 to 256"),
        ({"prompt": "x", "max_usd": -1}, "max_usd", "above 0"),
        *(({"prompt": "x", "max_usd": text}, "max_usd", "above 0") for text in ("1_0", "１", "Infinity", "nan", "0x1")),
        ({"prompt": "x", "max_usd": float("inf")}, "max_usd", "above 0"),
        ({"prompt": "x", "on_failure": "ignore"}, "on_failure", "accept"),
        ({"prompt": "x", "image_format": "gif"}, "image_format", "webp"),
        ({"prompt": "x", "thumbnail_pixels": 256}, "thumbnail_pixels", "output_path"),
        ({"prompt": "x", "output_path": "/tmp/x", "filename": "{oops}"}, "filename", "oops"),
        ({"prompt": "x", "fallback_models": "flux/schnell"}, "fallback_models", "list"),
        ({"prompt": "x", "multiple_outputs": True}, "multiple_outputs", "list of URLs"),
    ],
)
def test_wrong_arguments_are_rejected_before_paying(
    paint: Painting, sandbox: Sandbox, arguments: dict[str, Any], field: str, message: str
) -> None:
    paint(**arguments, retries=3)

    assert paint.state == "failed"
    assert isinstance(paint.error, InvalidArgumentsError)
    assert isinstance(paint.error, ValueError)
    assert [problem.field for problem in paint.error.problems] == [field]
    assert message in str(paint.error)
    assert len(paint.errors) == 1  # three retries were left and none was used
    assert sandbox.seen("/v1/images/generations") == []


def test_all_problems_are_reported_at_once(paint: Painting) -> None:
    paint(prompt=["", "x" * 500, {"prompt": "ok", "sede": 1}], num_images=9, concurrency="many")

    fields = [problem.field for problem in paint.error.problems]
    assert "concurrency" in fields
    assert any("sede" in field for field in fields)
    assert sum("prompt" in field for field in fields) >= 2


def test_an_unwritable_folder_is_detected_before_paying(paint: Painting, sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    paint(prompt=RACCOON, output_path=str(tmp_path / "file" / "folder"))

    assert paint.state == "failed"
    assert type(paint.error).__name__ == "StorageError"
    assert sandbox.seen("/v1/images/generations") == []


def test_base64_responses_are_stored_and_stay_out_of_xcom(paint: Painting, tmp_path: Path) -> None:
    paint(prompt=RACCOON, convert_base64_to_url=False, output_path=str(tmp_path))

    (image,) = paint.images
    assert image["url"] is None
    assert paint.urls == [image["path"]]
    assert Path(image["path"]).is_file()
    assert len(json.dumps([paint.images, paint.summary, paint.urls])) < 5_000


def test_one_broken_prompt_keeps_the_others(paint: Painting, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    paint(prompt=["good one", "bad one", "good two"], output_path=str(tmp_path))

    assert paint.state == "failed"
    assert isinstance(paint.error, ItemsFailedError)
    assert "[1] bad one" in str(paint.error)
    assert [image["prompt"] for image in paint.images] == ["good one", "good two"]
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert paint.summary["made"] == 2
    assert paint.summary["failed"] == 1


def test_on_failure_accept_continues_with_the_images_that_succeeded(paint: Painting, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    paint(prompt=["good one", "bad one"], on_failure="accept")

    assert paint.state == "success"
    assert len(paint.urls) == 1


def test_a_retry_pays_only_for_what_is_missing(paint: Painting, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("status", status=503, retry_after=0, prompt="two", times=6))  # as often as one try sends it
    paint(prompt=["one", "two", "three"], output_path=str(tmp_path), retries=1)

    assert paint.state == "success"
    assert sorted(charge.prompt for charge in sandbox.ledger()) == ["one", "three", "two"]
    assert [image["prompt"] for image in paint.images] == ["one", "two", "three"]
    assert paint.summary["adopted"] == 2
    assert paint.summary["usd_spent"] == pytest.approx(float(sum(charge.usd for charge in sandbox.ledger())))


@pytest.mark.slow
def test_an_image_that_cannot_be_downloaded_is_not_paid_for_again(
    paint: Painting, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("cut_image", on="download", times=5))
    paint(prompt=RACCOON, output_path=str(tmp_path), retries=2)

    assert paint.state == "success"
    assert len(sandbox.ledger()) == 1
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_fewer_images_than_requested_is_a_failure(paint: Painting, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("fewer", count=1))
    paint(prompt=RACCOON, num_images=3, output_path=str(tmp_path), retries=2)

    assert paint.state == "failed"
    assert isinstance(paint.error, FilteredError)
    assert (paint.error.requested, paint.error.made) == (3, 1)
    assert len(paint.errors) == 1
    assert len(sandbox.ledger()) == 1
    assert len(paint.images) == 1


def test_on_filtered_accept_keeps_the_images_that_were_not_filtered(paint: Painting, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("fewer", count=1))
    paint(prompt=RACCOON, num_images=3, on_filtered="accept")

    assert paint.state == "success"
    assert len(paint.urls) == 1
    assert paint.summary["filtered"] == 2


def test_no_image_at_all_fails_or_skips_but_never_succeeds(paint: Painting, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("none", times=None))
    paint(prompt=RACCOON)
    assert paint.state == "failed"
    assert isinstance(paint.error, EmptyResultError)

    paint(prompt=RACCOON, on_filtered="accept")
    assert paint.state == "skipped"


def test_a_response_lost_after_billing_is_reported_and_not_paid_for_again(paint: Painting, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("reset", billed=True))
    paint(prompt=RACCOON, retries=2, lost_answer_patience_seconds=2)

    (charge,) = sandbox.ledger()
    assert paint.state == "failed"
    assert isinstance(paint.error, ChargedButLostError)
    assert paint.error.inference_id == charge.inference_id
    assert paint.error.usd == float(charge.usd)
    assert paint.summary["usd_lost"] == paint.summary["usd_spent"] == float(charge.usd)


def test_a_request_lost_before_billing_is_sent_again(paint: Painting, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("reset", billed=False))
    paint(prompt=RACCOON, lost_answer_patience_seconds=1)

    assert paint.state == "success"
    assert len(sandbox.ledger()) == 1
    assert paint.summary["usd_lost"] == 0


@pytest.mark.parametrize(("mode", "billed"), [("check", 1), ("fail", 1), ("resend", 2)])
def test_a_charge_stated_by_the_lost_response_itself_is_counted(
    paint: Painting, sandbox: Sandbox, mode: str, billed: int
) -> None:
    sandbox.configure(log_lag_seconds=60)
    sandbox.add_fault(Fault("cut_body"))
    paint(prompt=RACCOON, on_lost_answer=mode, lost_answer_patience_seconds=0.2)

    assert len(sandbox.ledger()) == billed
    assert paint.summary["usd_spent"] == pytest.approx(float(sum(charge.usd for charge in sandbox.ledger())))
    assert paint.summary["usd_lost"] == pytest.approx(float(sandbox.ledger()[0].usd))
    if mode != "resend":
        assert isinstance(paint.error, ChargedButLostError)
        assert paint.error.inference_id == sandbox.ledger()[0].inference_id


def test_metrics_count_each_image_once(
    paint: Painting, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Metrics:
        def __init__(self) -> None:
            self.sums: Counter[str] = Counter()

        def incr(self, name: str, count: float = 1, *, tags: dict[str, str]) -> None:
            self.sums[f"{name} {tags['model']}"] += count

        def timing(self, name: str, milliseconds: float, *, tags: dict[str, str]) -> None:
            assert milliseconds > 0
            self.sums[f"{name} {tags['model']}"] += 1

    metrics = Metrics()
    monkeypatch.setattr("airflow_provider_imagen.operators.execution.get_metrics", lambda: metrics)
    sandbox.add_fault(Fault("status", status=503, retry_after=0, prompt="two", times=6))
    paint(prompt=["one", "two"], output_path=str(tmp_path), retries=1)

    assert paint.state == "success"
    model = "imagen-3.0-generate-002"
    assert metrics.sums[f"imagen.images {model}"] == 2
    assert metrics.sums[f"imagen.seconds {model}"] == 2
    assert metrics.sums[f"imagen.usd {model}"] == pytest.approx(float(sum(c.usd for c in sandbox.ledger())))


def test_default_args_may_give_a_retry_policy_and_a_success_callback() -> None:
    from airflow_provider_imagen.operators.journal_location import finish_journal

    def mine(context: Any) -> None: ...

    policy = object()
    with DAG("defaults", schedule=None, default_args={"on_success_callback": mine, "retry_policy": policy}):
        given = ImagenGenerateOperator(task_id="paint", prompt="x")
    with DAG("no_defaults", schedule=None):
        own = ImagenGenerateOperator(task_id="paint", prompt="x")

    assert list(given.on_success_callback) == [mine, finish_journal]
    assert list(own.on_success_callback) == [finish_journal]
    if hasattr(own, "retry_policy"):  # Airflow 3.3
        assert given.retry_policy is policy
        assert type(own.retry_policy).__name__ == "ImagenRetryPolicy"


def test_a_mapped_operator_has_the_same_defaults() -> None:
    from airflow_provider_imagen.operators.journal_location import finish_journal

    with DAG("mapped", schedule=None):
        mapped = ImagenGenerateOperator.partial(task_id="paint").expand(prompt=["x", "y"])
    assert list(mapped.unmap({"prompt": "x"}).on_success_callback) == [finish_journal]


@pytest.mark.skipif(not HAS_RETRY_POLICY, reason="Airflow 3.3 introduced retry policies")
def test_a_mapped_operator_has_the_same_retry_policy() -> None:
    policy = object()
    with DAG("mapped", schedule=None):
        own = ImagenGenerateOperator.partial(task_id="paint").expand(prompt=["x", "y"])
        given = ImagenGenerateOperator.partial(task_id="more", retry_policy=policy).expand(prompt=["x", "y"])
    with DAG("mapped_defaults", schedule=None, default_args={"retry_policy": policy}):
        shared = ImagenGenerateOperator.partial(task_id="paint").expand(prompt=["x", "y"])

    own, given, shared = (operator.unmap({"prompt": "x"}) for operator in (own, given, shared))
    assert type(own.retry_policy).__name__ == "ImagenRetryPolicy"
    assert given.retry_policy is shared.retry_policy is policy


def test_an_unknown_store_is_reported_before_paying(paint: Painting, sandbox: Sandbox) -> None:
    paint(prompt=RACCOON, output_path="foo://bucket/folder", retries=2)

    assert isinstance(paint.error, InvalidArgumentsError)
    assert "foo" in str(paint.error)
    assert sandbox.seen("/v1/images/generations") == []


def test_a_wrong_key_ends_the_task_at_once(paint: Painting, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_IMAGEN_DEFAULT",
        json.dumps({"conn_type": "imagen", "host": sandbox.url, "password": "0" * 32}),
    )
    paint(prompt=[f"prompt {number}" for number in range(50)], retries=3)

    assert paint.state == "failed"
    assert isinstance(paint.error, AuthenticationError)
    assert len(paint.errors) == 1
    assert len(sandbox.seen("/v1/images/generations")) <= 4
    assert paint.summary["not_sent"] >= 46


def test_a_retired_model_names_its_replacement_and_fallbacks_are_used(paint: Painting, sandbox: Sandbox) -> None:
    withdrawn = Fault("withdrawn", model="imagen-3.0-generate-002", times=None)
    sandbox.add_fault(withdrawn)
    paint(prompt=RACCOON, retries=3)
    assert isinstance(paint.error, ModelWithdrawnError)
    assert len(paint.errors) == 1

    paint(prompt=["one", "two"], aspect_ratio="16:9", fallback_models=["flux/schnell"])
    assert paint.state == "success"
    assert {image["model"] for image in paint.images} == {"flux/schnell"}


def test_a_plan_over_the_cap_is_rejected_before_paying(paint: Painting, sandbox: Sandbox) -> None:
    paint(prompt=["one", "two", "three"], max_usd=0.1)

    assert isinstance(paint.error, BudgetExceededError)
    assert sandbox.ledger() == []
    assert paint.error.items_left == 3


def test_an_outlet_gets_an_event_with_the_summary(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.sdk import Asset
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with DAG("with_outlet", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint", prompt=RACCOON, output_path=str(tmp_path), outlets=[Asset("imagen-test://pictures")]
        )
    run_dag(dag)

    with create_session() as session:
        event = session.scalars(select(AssetEvent).where(AssetEvent.source_dag_id == "with_outlet")).one()
        assert event.extra["made"] == 1
        assert event.extra["manifest"].endswith("metadata.jsonl")


def test_many_images_leave_a_small_xcom(paint: Painting, tmp_path: Path) -> None:
    paint(prompt=[f"picture {number} of {'a long story ' * 20}" for number in range(80)], output_path=str(tmp_path))

    assert paint.state == "success"
    assert paint.images == {"manifest": str(tmp_path / "metadata.jsonl"), "count": 80}
    assert len(paint.urls) == 80
    assert len(_manifest(tmp_path)) == 80


def test_clearing_a_successful_task_generates_new_images(
    run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    from airflow.utils.session import create_session
    from sqlalchemy import inspect, text

    with DAG("forgets", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt=RACCOON, output_path=str(tmp_path))
    run_dag(dag)

    with create_session() as session:
        if inspect(session.get_bind()).has_table("task_state_store"):  # Airflow 3.3
            assert session.scalar(text("select count(*) from task_state_store where dag_id = 'forgets'")) == 0
    assert list((tmp_path / ".imagen" / "journal").glob("*")) == []


def _manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
