"""
### Make a picture, then change it

The second task takes the first one's records: each stored picture goes to an edit model as it lies in the folder. The
model's own field for pictures (`image_url`, `image_urls`, `image`) is chosen for you, and everything is checked before
a cent is spent.
"""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={"prompt": "A harbour at noon", "change": "Make it night, with lanterns", "output_path": "imagen-pictures"},
)
def imagen_edit():
    # [START imagen_edit]
    made = ImagenGenerateOperator(
        task_id="make",
        prompt="{{ params.prompt }}",
        output_path="{{ params.output_path }}/{{ run_id }}",
    )
    ImagenGenerateOperator(
        task_id="change",
        prompt="{{ params.change }}",
        model="flux/kontext-pro/image-to-image",
        input_images=made.output["images"],
        output_path="{{ params.output_path }}/{{ run_id }}",
    )
    # [END imagen_edit]


imagen_edit()
