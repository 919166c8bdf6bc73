"""
### Prompts from templates

A prompt is a template like any other: here one line of Jinja, and a longer one from a file. Use `dag_run.run_after`
rather than `ds`: a run that was triggered by hand or by an asset has no logical date, and `ds` is undefined then.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(
    schedule="@weekly",
    catchup=False,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={"city": "Lisbon", "output_path": "imagen-pictures"},
    template_searchpath=str(Path(__file__).parent / "prompts"),
)
def imagen_templates():
    # [START imagen_templates]
    ImagenGenerateOperator(
        task_id="postcards",
        prompt=[
            "{{ params.city }} on a {{ dag_run.run_after.strftime('%A in %B') }}, watercolour",
            "postcard.prompt",  # a template file, found like any other
        ],
        aspect_ratio="4:3",
        output_path="{{ params.output_path }}/{{ run_id }}",
    )
    # [END imagen_templates]


imagen_templates()
