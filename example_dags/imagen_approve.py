"""
### A person approves before pictures are published

`paint` makes pictures, `review` shows them under *Required Actions* and waits. "Approve" lets `publish` run, "Reject"
skips it.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import review_body


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "output_path": Param("imagen-demo", type="string", title="Folder", description="Also s3://, gs:// or abfs://."),
    },
)
def imagen_approve():
    # [START imagen_approve]
    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt=["A lighthouse at dawn, poster", "A lighthouse at dusk, poster"],
        output_path="{{ params.output_path }}",
    )

    @task
    def show(images: Any) -> str:
        return review_body(images, task_id="paint")

    review = ApprovalOperator(
        task_id="review",
        subject="May these pictures be published?",
        body=show(paint.output["images"]),
    )

    @task
    def publish(images: list[dict[str, Any]]) -> list[str]:
        return [image["path"] for image in images]

    review >> publish(paint.output["images"])
    # [END imagen_approve]


imagen_approve()
