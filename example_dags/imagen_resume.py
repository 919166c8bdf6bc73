"""
### Retries that cost nothing

Each try goes on where the last one ended: what was paid for is fetched and stored, never bought again, also when a
worker died. On Airflow 3.3 the wait that the API asks for happens without holding a worker, and hopeless errors fail at
once.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_resume():
    # [START imagen_resume]
    ImagenGenerateOperator(
        task_id="paint",
        prompt=[f"Page {page} of a picture book about a lost mitten" for page in range(1, 9)],
        output_path="{{ params.output_path }}/{{ run_id }}",
        retries=3,
        retry_delay=timedelta(minutes=2),
        execution_timeout=timedelta(minutes=30),
        on_lost_answer="check",  # the default: look a lost answer up before paying again
        fallback_models=["blackforestlabs/flux-2", "flux/schnell"],
    )
    # [END imagen_resume]


imagen_resume()
