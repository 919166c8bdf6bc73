"""
### A person approves a sample before the rest is paid for

`sample` generates the first 12 of 200 images, and `review` shows an overview of them under *Required Actions*, with
what the other 188 would cost at most, at the sample's real price. "Approve" lets `everything` generate those; it reuses
the 12, and whatever else earlier runs have left in the same folder. "Reject" skips it.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import quote_rest, review_body


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "output_path": Param("imagen-demo", type="string", title="Folder", description="Also s3://, gs:// or abfs://."),
        "sample": Param(12, type="integer", minimum=1, maximum=60, title="Images in the sample"),
    },
)
def imagen_sample():
    # [START imagen_sample]
    @task
    def prompts() -> list[dict[str, str]]:
        return [
            {"name": f"{plant}-{view}", "prompt": f"Botanical drawing of the {plant} of the imaginary {view} tree"}
            for plant in ("leaf", "flower", "fruit", "seed", "bark")
            for view in range(1, 41)
        ]

    same = {
        "prompt": prompts(),
        "output_path": "{{ params.output_path }}",
        "filename": "{name}.{extension}",
        "reuse": "unchanged",
    }
    sample = ImagenGenerateOperator(task_id="sample", limit="{{ params.sample }}", thumbnail_pixels=256, **same)

    @task
    def show(images: Any, summary: dict[str, Any]) -> str:
        return f"{review_body(images, task_id='sample', columns=4)}\n\n{quote_rest(summary)}"

    review = ApprovalOperator(
        task_id="review",
        subject="Generate the rest?",
        body=show(sample.output["images"], sample.output["summary"]),
    )
    review >> ImagenGenerateOperator(task_id="everything", concurrency=16, thumbnail_pixels=256, **same)
    # [END imagen_sample]


imagen_sample()
