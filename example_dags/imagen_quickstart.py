"""
### Pictures from prompts

One task that makes a picture for each prompt and stores it. Trigger it as it is, or with prompts of your own.

It needs the connection `imagen_default`; without a key, `{"conn_type": "imagen", "extra": {"sandbox": true}}` will do.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "prompts": Param(["A raccoon eating ice-cream"], type="array", title="Prompts", description="One per line."),
        "num_images": Param(1, type="integer", title="Pictures per prompt"),
        "aspect_ratio": Param(
            "1:1", type="string", examples=["1:1", "9:16", "16:9", "3:4", "4:3"], title="Aspect ratio"
        ),
        "seed": Param(None, type=["null", "integer"], title="Seed", description="Empty: a new one each time."),
        "model": Param("flux/dev", type="string", title="Model"),
        "output_path": Param("imagen-pictures", type="string", title="Folder", description="Also s3:// and the like."),
    },
)
def imagen_quickstart():
    # [START imagen_quickstart]
    @task
    def prompts(params):
        return params["prompts"]

    ImagenGenerateOperator(
        task_id="paint",
        prompt=prompts(),
        model="{{ params.model }}",
        num_images="{{ params.num_images }}",
        aspect_ratio="{{ params.aspect_ratio }}",
        seed="{{ params.seed }}",
        output_path="{{ params.output_path }}",
    )
    # [END imagen_quickstart]


imagen_quickstart()
