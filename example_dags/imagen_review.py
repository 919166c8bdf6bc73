"""
### A person marks images, and only the marked ones are made again

`review` waits until somebody has marked the images of `paint` on the review page, which the *Pictures* tab of the run
and the required action link to. `again` pays only for those that are to have a new seed or a changed prompt. A second
person, or the same one, looks at these, and `publish` gets the favourites of both rounds.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import read_review, review_form


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "output_path": Param("imagen-demo", type="string", title="Folder", description="Also s3://, gs:// or abfs://."),
    },
)
def imagen_review():
    # [START imagen_review]
    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt=[f"A poster of {subject}, linocut" for subject in ("a lighthouse", "a harbour", "a ferry", "a gull")],
        num_images=2,
        seed=7,
        output_path="{{ params.output_path }}",
    )
    review = HITLOperator(task_id="review", subject="Which posters may be printed?", **review_form("paint"))
    paint >> review

    @task
    def read(images: Any, answer: dict[str, Any], source: str) -> dict[str, Any]:
        found = read_review(answer, images, task_id=source)
        return {"favourites": [image["path"] for image in found.favourites], "again": found.again}

    first = read(paint.output["images"], review.output, "paint")

    again = ImagenGenerateOperator(task_id="again", prompt=first["again"], output_path="{{ params.output_path }}")
    review_again = HITLOperator(task_id="review_again", subject="And which of these?", **review_form("again"))
    again >> review_again
    second = read.override(task_id="read_again")(again.output["images"], review_again.output, "again")

    @task(trigger_rule="none_failed_min_one_success")  # nothing to make again skips the second round
    def publish(favourites: list[str], more: list[str] | None) -> list[str]:
        return [*favourites, *(more or [])]

    publish(first["favourites"], second["favourites"])
    # [END imagen_review]


imagen_review()
