"""The way from Airflow's pages to the pictures."""
