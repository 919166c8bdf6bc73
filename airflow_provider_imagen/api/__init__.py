"""The authenticated API client, and the parsing of its responses and errors. Knows nothing of Airflow."""
