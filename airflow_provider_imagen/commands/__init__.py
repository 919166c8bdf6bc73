"""The ``airflow-imagen`` commands, except ``demo``."""
