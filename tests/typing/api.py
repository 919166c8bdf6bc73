"""Public usage that mypy checks but nothing runs; it must keep type-checking."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, assert_type

import pytest
from airflow.sdk import Asset, Context, ObjectStoragePath, dag, task

from airflow_provider_imagen.decorators.imagen import imagen_task
from airflow_provider_imagen.exceptions import (
    BudgetExceededError,
    ImagenError,
    InvalidArgumentsError,
    LostAnswerError,
    ModelWithdrawnError,
    RateLimitedError,
)
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.policies.retry import ImagenRetryPolicy
from airflow_provider_imagen.review import Review, ReviewForm, pick_images, read_review, review_body, review_form
from airflow_provider_imagen.sandbox import Charge, Fault, Sandbox, SandboxControl, SeenRequest


@dag(schedule=None)
def operator() -> None:
    ImagenGenerateOperator(task_id="one", prompt="A lighthouse")
    everything = ImagenGenerateOperator(
        task_id="everything",
        prompt=["A lighthouse", {"prompt": "A harbour", "name": "harbour", "seed": 7}],
        model="google/imagen-4.0-generate-001",
        num_images=2,
        aspect_ratio="16:9",
        seed="{{ params.seed }}",
        enhance_prompt=False,
        person_generation="dont_allow",
        safety_setting="block_only_high",
        add_watermark=False,
        convert_base64_to_url=True,
        input_images=[Path("cat.png"), "https://example.com/cat.png"],
        metadata_columns=["sku"],
        parameters={"negative_prompt": "people"},
        output_path=ObjectStoragePath("s3://aws_default@media/pictures"),
        filename="{name}-{image}.{extension}",
        image_format="webp",
        thumbnail_pixels=256,
        contact_sheet=True,
        provenance={"creator": "the team"},
        concurrency=8,
        requests_per_minute=60,
        max_usd=1.5,
        on_failure="accept",
        on_filtered="accept",
        on_lost_answer="resend",
        lost_answer_patience_seconds=30,
        fallback_models=["flux/dev"],
        imagen_conn_id="imagen_default",
        retries=3,
        retry_delay=timedelta(minutes=1),
        retry_policy=ImagenRetryPolicy(),
        outlets=[Asset("s3://media/pictures")],
    )
    ImagenGenerateOperator.partial(task_id="mapped", model="flux/dev").expand(prompt=everything.output)

    ImagenGenerateOperator(task_id="wrong", image_format="bmp")  # type: ignore[arg-type]
    ImagenGenerateOperator(task_id="wrong", on_lost_answer="ignore")  # type: ignore[arg-type]
    ImagenGenerateOperator(task_id="wrong", on_failure="skip")  # type: ignore[arg-type]
    ImagenGenerateOperator(task_id="wrong", concurrency="many")  # type: ignore[arg-type]


class Postcards(ImagenGenerateOperator):
    def execute(self, context: Context) -> list[str]:
        return [url for url in super().execute(context) if url]


@dag(schedule=None)
def decorator() -> None:
    @task.imagen(model="flux/dev", output_path="pictures/{{ run_id }}")
    def from_airflow(headline: str) -> dict[str, Any]:
        return {"prompt": headline, "seed": 7}

    @imagen_task(max_usd=1)
    def imported(headline: str) -> str:
        return headline

    from_airflow("An owl reads")
    imported("An owl reads")


def hook() -> None:
    hook = ImagenHook("imagen_default")
    generations = hook.generate_images("A lighthouse", num_images=2, parameters={"negative_prompt": "people"})
    for generation in generations:
        assert_type(generation.urls, list[str])
        assert_type(generation.usd, Decimal | None)
        assert_type(generation.model, str | None)
    assert_type(hook.quote(["A lighthouse"], model="flux/dev").usd, Decimal | None)
    assert_type(hook.download("https://example.com/cat.png"), bytes)
    assert_type(hook.store(b"", folder="pictures", name="cat", image_format="png"), dict[str, Any])
    assert_type(hook.test_connection(), tuple[bool, str])
    assert_type(hook.get_balance(), float)
    assert_type(hook.default_model, str)
    for state in hook.check_models(["flux/dev"]):
        assert_type(state.is_fine, bool)
        assert_type(state.sentence, str)
    hook.get_request_logs(start=datetime.now(UTC) - timedelta(hours=1), end=datetime.now(UTC), model=["flux/dev"])
    hook.generate_images("A lighthouse", "flux/dev")  # type: ignore[call-arg]
    hook.close()


def errors() -> None:
    try:
        ImagenHook().generate_images("A lighthouse")
    except InvalidArgumentsError as error:
        assert_type([problem.field for problem in error.problems], list[str])
        wrong_argument: ValueError = error
        raise SystemExit(str(wrong_argument)) from error
    except ModelWithdrawnError as error:
        assert_type(error.replaced_by, str | None)
    except RateLimitedError as error:
        assert_type(error.retry_after, float | None)
    except BudgetExceededError as error:
        assert_type(error.spent_usd, float)
        assert_type(error.period, Literal["day", "month"] | None)
    except LostAnswerError as error:
        assert_type(error.client_request_id, str | None)
    except ImagenError as error:
        assert_type(error.retry_helps, bool)
        assert_type(error.status, int | None)
        assert_type(error.usd, float | None)


def retry_policy(error: Exception) -> None:
    ImagenRetryPolicy().evaluate(error, try_number=1, max_tries=3)


def test_fixtures(imagen_sandbox: Sandbox, imagen_connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imagen_sandbox.configure(picture_scale=1, balance_usd=Decimal(10))
    imagen_sandbox.add_fault(Fault("status", skip=1))
    assert_type(imagen_sandbox.ledger(), list[Charge])
    assert_type(imagen_sandbox.seen(), list[SeenRequest])
    monkeypatch.setenv("MY_CONNECTION", imagen_connection)


def sandbox() -> None:
    with Sandbox(latency_seconds=0.5, requests_per_minute=60) as server:
        assert_type(server.url, str)
        assert_type(SandboxControl(server.url).ledger(), list[Charge])


def review(images: list[dict[str, Any]]) -> None:
    assert_type(review_body(images, task_id="paint", columns=3), str)
    assert_type(review_body({"manifest": "metadata.jsonl", "count": 500}, task_id="paint", map_index=2), str)
    assert_type(pick_images(images, ["1", 2]), list[dict[str, Any]])
    assert_type(review_form("paint", map_index=2, reasons=("Text",)), ReviewForm)
    found = read_review({"chosen_options": [], "params_input": {}}, images)
    assert_type(found, Review)
    assert_type(found.favourites, list[dict[str, Any]])
    assert_type(found.again, list[dict[str, Any]])
    assert_type(found.images[0].reasons, tuple[str, ...])
