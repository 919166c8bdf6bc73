"""
### A person picks the best of four

`paint` makes four pictures of one prompt, `review` shows them under *Required Actions* and waits. The records of the
chosen ones, and only these, reach `publish`.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import pick_images, review_body


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "prompt": Param("A raccoon eating ice-cream, watercolour", type="string"),
        "output_path": Param("imagen-demo", type="string", title="Folder", description="Also s3://, gs:// or abfs://."),
    },
)
def imagen_pick_best():
    # [START imagen_pick_best]
    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt="{{ params.prompt }}",
        num_images=4,
        output_path="{{ params.output_path }}",
    )

    @task
    def show(images: list[dict[str, Any]]) -> str:
        return review_body(images, task_id="paint")

    review = HITLOperator(
        task_id="review",
        subject="Which of these are good enough?",
        body=show(paint.output["images"]),
        options=["1", "2", "3", "4"],
        multiple=True,
    )

    @task
    def choose(images: list[dict[str, Any]], answer: dict[str, Any]) -> list[dict[str, Any]]:
        return pick_images(images, answer["chosen_options"])

    @task
    def publish(images: list[dict[str, Any]]) -> list[str]:
        return [image["path"] for image in images]

    publish(choose(paint.output["images"], review.output))
    # [END imagen_pick_best]


imagen_pick_best()
