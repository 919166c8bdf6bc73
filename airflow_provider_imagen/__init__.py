"""Generate images in Apache Airflow through the AI/ML API."""

__version__ = "0.1.0"
