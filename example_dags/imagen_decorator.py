"""
### `@task.imagen`

A function returns the prompt, or a list of prompts; the rest is the operator.
"""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_decorator():
    # [START imagen_decorator]
    @task
    def headline():
        return "Otters seen in the city centre again"

    @task.imagen(aspect_ratio="16:9", output_path="{{ params.output_path }}/{{ run_id }}")
    def illustrate(headline):
        return f"Editorial illustration, muted colours: {headline}"

    illustrate(headline())
    # [END imagen_decorator]


imagen_decorator()
