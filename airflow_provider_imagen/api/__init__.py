"""The paid wire: the authenticated client, and what its responses mean. Knows nothing of Airflow."""
