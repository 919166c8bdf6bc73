"""Notifications about generated images, through Airflow's notifiers."""
