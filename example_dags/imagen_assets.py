"""
### Pictures as an asset

One DAG makes the pictures and declares an asset; its event carries the summary. Another DAG runs whenever there are new
ones, and reads the manifest the event names.
"""

from __future__ import annotations

from airflow.sdk import Asset, ObjectStoragePath, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

# [START imagen_assets]
POSTCARDS = Asset("imagen_postcards")


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_asset_producer():
    ImagenGenerateOperator(
        task_id="paint",
        prompt=["A harbour in the rain", "A harbour in the sun"],
        output_path="{{ params.output_path }}/{{ run_id }}",
        outlets=[POSTCARDS],
    )


@dag(schedule=[POSTCARDS], tags=["imagen", "example"], doc_md=__doc__)
def imagen_asset_consumer():
    @task(inlets=[POSTCARDS])
    def use(triggering_asset_events):
        import json

        for event in triggering_asset_events[POSTCARDS]:
            manifest = ObjectStoragePath(event.extra["manifest"])
            for line in manifest.read_text().splitlines():
                print("new picture:", json.loads(line)["file_name"])

    use()


imagen_asset_producer()
imagen_asset_consumer()
# [END imagen_assets]
