"""The ``airflow-imagen`` commands ``models``, ``check`` and ``reconcile``."""
