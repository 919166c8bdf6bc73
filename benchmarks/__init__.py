"""
The provider's overhead on top of the API's latency: ``python -m benchmarks`` prints tables and saves JSON.

Everything runs on this machine: a server of the API's shape (``server``), a real Airflow (``running``), and the DAGs in
``dags``; ``kills`` runs against the sandbox, which keeps the bill. One module per question; each has
``measure(lab, quick)``, which returns rows of plain data.
"""
