"""
### A table of prompts, a folder of pictures

Rows become prompts, each with a name and arguments of its own; one task makes them all, many at a time, and the next
one reads the manifest it left beside the pictures. Set `output_path` to `s3://aws_default@bucket/folder`, `gs://…` or
`abfs://…` to store them there.
"""

from __future__ import annotations

from airflow.sdk import ObjectStoragePath, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PRODUCTS = """\
sku,description,format
T-100,a teapot shaped like an elephant,1:1
C-230,a coffee mug with a fox tail for a handle,1:1
P-417,a poster of the moon over rice terraces,3:4
"""


@dag(
    schedule="@daily",
    catchup=False,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={"output_path": "imagen-pictures"},
)
def imagen_batch():
    # [START imagen_batch]
    @task
    def rows():
        import csv  # a file, a query, an API: whatever gives rows

        return [
            {"name": row["sku"], "prompt": f"Product photo of {row['description']}", "aspect_ratio": row["format"]}
            for row in csv.DictReader(PRODUCTS.splitlines())
        ]

    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt=rows(),
        output_path="{{ params.output_path }}/{{ run_id }}",
        filename="{name}.{extension}",
        concurrency=16,
        thumbnail_pixels=256,
    )

    @task
    def publish(summary):
        import json

        manifest = ObjectStoragePath(summary["manifest"])
        for line in manifest.read_text().splitlines():
            picture = json.loads(line)
            print(picture["file_name"], picture["width"], picture["height"], picture["usd"], picture["prompt"])

    publish(paint.output["summary"])
    # [END imagen_batch]


imagen_batch()
