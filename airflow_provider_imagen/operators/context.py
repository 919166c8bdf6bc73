"""What the operator reads out of Airflow's task context, and how it opens folders."""

from airflow_provider_imagen.hooks.origin import origin_of
from airflow_provider_imagen.hooks.paths import open_folder

__all__ = ["open_folder", "origin_of"]
