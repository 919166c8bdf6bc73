"""The wire: what to send, what a reply means, and the thin client in between. Knows nothing of Airflow."""
