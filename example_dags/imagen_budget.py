"""
### A budget, and what to do about losses

`max_usd` holds over all tries of the task: a plan that cannot fit is refused before the first request. What a model
withholds is accepted here; what breaks still fails the task, with everything that worked kept.
"""

from __future__ import annotations

from airflow.sdk import dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_budget():
    # [START imagen_budget]
    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt=["A quiet library", "A loud market", "A slow train"],
        num_images=2,
        output_path="{{ params.output_path }}/{{ run_id }}",
        max_usd=0.50,
        on_filtered="accept",
        concurrency=4,
        requests_per_minute=120,
    )

    @task
    def report(summary):
        print(f"{summary['made']} of {summary['requested']} pictures for ${summary['usd_spent']:.2f}")

    report(paint.output["summary"])
    # [END imagen_budget]


imagen_budget()
