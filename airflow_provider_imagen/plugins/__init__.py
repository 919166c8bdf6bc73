"""The Airflow plugin and the gallery it mounts in the web server."""
