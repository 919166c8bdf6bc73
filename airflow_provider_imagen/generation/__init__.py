"""The run: plan, journal, workers, budget, results. Knows Airflow only through small protocols."""
