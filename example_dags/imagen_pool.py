"""
### One limit for several tasks

`concurrency` and `requests_per_minute` hold within one task. What all tasks may do together is a pool's business: each
task takes slots of the pool while it runs, and waits when there are none. Here each takes as many slots as it has
requests in flight, so that the pool's size is the number of requests in flight in all of Airflow.

Make the pool first, in the UI under *Admin → Pools* or with

    airflow pools set imagen 8 "Requests in flight to the AI/ML API"

A task whose pool does not exist stays *scheduled* for ever; its page says why.
"""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_pool():
    # [START imagen_pool]
    for season in ("spring", "summer", "autumn", "winter"):
        ImagenGenerateOperator(
            task_id=season,
            prompt=[f"A park bench in {season}", f"A bakery window in {season}", f"A ferry in {season}"],
            output_path="{{ params.output_path }}/{{ run_id }}",
            concurrency=4,
            pool="imagen",  # airflow pools set imagen 8 "Requests in flight to the AI/ML API"
            pool_slots=4,  # as many as concurrency: with 8 slots, two of the four run at a time
        )
    # [END imagen_pool]


imagen_pool()
