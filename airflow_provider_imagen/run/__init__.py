"""One attempt of a task, from rendered arguments to a result. Knows Airflow only through small protocols."""
