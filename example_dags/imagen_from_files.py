"""
### Prompts from a table

An upstream task reads a CSV, JSONL or Parquet file from wherever `ObjectStoragePath` reaches (a disk, `s3://…`, `gs://…`,
`abfs://…`), and each row becomes an item: the column `prompt`, if you like `name` for the file, and a column for each
field of the model that differs between rows. An empty cell leaves its field to the task's own arguments.

Parquet needs `pyarrow` where the task runs; this provider does not bring it.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import ObjectStoragePath, Param, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PRODUCTS = Path(__file__).parent / "tables" / "products.csv"


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={
        "table": Param(str(PRODUCTS), type="string", title="Table", description="A .csv, .jsonl or .parquet file."),
        "output_path": Param("imagen-pictures", type="string", title="Folder", description="Also s3:// and the like."),
    },
)
def imagen_from_files():
    # [START imagen_from_files]
    @task
    def rows(params):
        import csv
        import json

        table = ObjectStoragePath(params["table"])
        match table.suffix:
            case ".csv":
                with table.open(encoding="utf-8-sig", newline="") as file:
                    return list(csv.DictReader(file))
            case ".jsonl":
                with table.open(encoding="utf-8") as file:
                    return [json.loads(line) for line in file]
            case ".parquet":
                import pyarrow.parquet  # not brought by this provider

                with table.open("rb") as file:
                    return pyarrow.parquet.read_table(file).to_pylist()
        raise ValueError(f"{table} is neither .csv nor .jsonl nor .parquet")

    ImagenGenerateOperator(
        task_id="paint",
        prompt=rows(),
        output_path="{{ params.output_path }}/{{ run_id }}",
        filename="{name}-{image}.{extension}",
    )
    # [END imagen_from_files]


imagen_from_files()
