"""
What the provider costs beside the API's own waiting: ``python -m benchmarks`` prints tables and keeps JSON.

Everything runs on this machine: a server of the API's shape (``server``), a real Airflow (``running``), and the DAGs in
``dags``; ``kills`` runs against the sandbox, which keeps the bill. One module per question; each has
``measure(lab, quick)``, which gives rows of plain data.
"""
