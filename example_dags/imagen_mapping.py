"""
### Mapping, in and out

A mapped task instance for each prompt, labelled with it; and mapped tasks over the links and the records of one batch.
For more than a few dozen prompts one task with a list is much cheaper: each mapped instance costs Airflow about 0.7
seconds of CPU.
"""

from __future__ import annotations

from airflow.sdk import dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_mapping():
    # [START imagen_mapping]
    ImagenGenerateOperator.partial(
        task_id="one_task_each",
        map_index_template="{{ task.prompt }}",
        output_path="{{ params.output_path }}/{{ run_id }}",
        max_active_tis_per_dagrun=4,
    ).expand_kwargs(
        [
            {"prompt": "A lighthouse at dawn", "aspect_ratio": "9:16"},
            {"prompt": "A harbour at noon", "aspect_ratio": "16:9"},
        ]
    )

    batch = ImagenGenerateOperator(
        task_id="one_task_for_all",
        prompt=["A market at dusk", "A street at night"],
        output_path="{{ params.output_path }}/{{ run_id }}",
    )

    @task
    def look_at(url):
        print("A picture is at", url)

    look_at.expand(url=batch.output)

    @task
    def records(images):
        return images  # Airflow maps over what a task returns, not over its other XComs

    @task(map_index_template="{{ name }}")
    def publish(image):
        from airflow.sdk import get_current_context

        get_current_context()["name"] = image["prompt"]
        print(image["path"], image["width"], image["height"], image["usd"])

    publish.expand(image=records(batch.output["images"]))
    # [END imagen_mapping]


imagen_mapping()
