"""
### A campaign from a table, with its columns

The columns `sku`, `campaign` and `alt_text` are not sent to the API. They travel with each picture: into XCom, the
manifest and the gallery, where people can search for them; with `provenance`, also into the file. The next task groups
the pictures by campaign.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import ObjectStoragePath, Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import read_images

CAMPAIGN = Path(__file__).parent / "tables" / "campaign.csv"


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "table": Param(str(CAMPAIGN), type="string", title="Table", description="A .csv file."),
        "output_path": Param("imagen-pictures", type="string", title="Folder", description="Also s3:// and the like."),
    },
)
def imagen_campaign():
    # [START imagen_campaign]
    @task
    def rows(params):
        import csv

        with ObjectStoragePath(params["table"]).open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt=rows(),
        metadata_columns=["sku", "campaign", "alt_text"],
        provenance={"metadata": True},
        output_path="{{ params.output_path }}/{{ run_id }}",
        filename="{name}.{extension}",
    )

    @task
    def by_campaign(images):
        campaigns = {}
        for image in read_images(images, task_id="paint"):
            campaigns.setdefault(image["metadata"]["campaign"], []).append(image["path"])
        return campaigns

    by_campaign(paint.output["images"])
    # [END imagen_campaign]


imagen_campaign()
