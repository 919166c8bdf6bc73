"""Commands of ``airflow-imagen`` that are more than a few lines."""
