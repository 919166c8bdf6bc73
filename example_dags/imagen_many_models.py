"""
### One prompt, several models

Changing the model is one word: `num_images`, `aspect_ratio` and `seed` are put into each model's own terms. The contact
sheet shows all pictures side by side, with the model under each.
"""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

MODELS = ["blackforestlabs/flux-2", "bytedance/seedream-v4-text-to-image", "flux/schnell", "openai/gpt-image-2"]


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={"prompt": "An owl reading by candlelight", "output_path": "imagen-pictures"},
)
def imagen_many_models():
    # [START imagen_many_models]
    ImagenGenerateOperator(
        task_id="compare",
        prompt=[{"prompt": "{{ params.prompt }}", "model": model, "name": model} for model in MODELS],
        aspect_ratio="1:1",
        output_path="{{ params.output_path }}/{{ run_id }}",
        filename="{name}-{image}.{extension}",
        contact_sheet=True,
    )
    # [END imagen_many_models]


imagen_many_models()
