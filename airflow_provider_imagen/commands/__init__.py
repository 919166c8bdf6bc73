"""The longer commands of ``airflow-imagen``."""
