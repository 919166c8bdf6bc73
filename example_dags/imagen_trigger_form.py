"""
### A form for people who do not write DAGs

Airflow makes the trigger form out of `params`: sections, choices with readable labels, limits, a prompt of several
lines. What people enter is checked by the form, and again against the model before anything is paid.

Fields without a section stand first and are unfolded; each `section` folds what is rarely changed.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        # [START imagen_trigger_form]
        "prompt": Param(
            "A lighthouse on a cliff,\nwatercolour, soft morning light",
            type="string",
            format="multiline",
            minLength=3,
            maxLength=400,
            title="Prompt",
            description_md="What to paint: **subject, style, light**. At most 400 characters, in English.",
        ),
        "aspect_ratio": Param(
            "1:1",
            type="string",
            enum=["1:1", "3:4", "4:3", "9:16", "16:9"],
            values_display={
                "1:1": "Square (1:1)",
                "3:4": "Portrait (3:4)",
                "4:3": "Landscape (4:3)",
                "9:16": "Telephone (9:16)",
                "16:9": "Screen (16:9)",
            },
            title="Shape",
        ),
        "num_images": Param(
            2,
            type="integer",
            minimum=1,
            maximum=4,
            title="How many",
            description="Each picture is paid for.",
        ),
        # [END imagen_trigger_form]
        "model": Param(
            "bytedance/seedream-4-5",
            type="string",
            enum=["bytedance/seedream-4-5", "bytedance/seedream-5-0-lite-preview", "bytedance/seedream-5-0-pro"],
            values_display={
                "bytedance/seedream-4-5": "Seedream 4.5",
                "bytedance/seedream-5-0-lite-preview": "Seedream 5 Lite",
                "bytedance/seedream-5-0-pro": "Seedream 5 Pro",
            },
            title="Model",
            description="The command airflow-imagen models lists all, with their prices.",
            section="Model",
        ),
        "seed": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            maximum=4294967295,
            title="Seed",
            description="The same seed gives the same picture. Empty: a new one each time.",
            section="Model",
        ),
        "output_path": Param(
            "imagen-pictures",
            type="string",
            minLength=1,
            title="Folder",
            description="Also in a store, for example s3://aws_default@media/posters.",
            section="Folder",
        ),
    },
)
def imagen_trigger_form():
    ImagenGenerateOperator(
        task_id="paint",
        prompt="{{ params.prompt }}",
        model="{{ params.model }}",
        num_images="{{ params.num_images }}",
        aspect_ratio="{{ params.aspect_ratio }}",
        seed="{{ params.seed }}",
        output_path="{{ params.output_path }}/{{ run_id }}",
        max_usd=1.00,  # nobody spends more by accident
    )


imagen_trigger_form()
