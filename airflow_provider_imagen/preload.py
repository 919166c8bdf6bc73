"""
Import everything that tasks need once, in the process that forks them, so that tasks start faster.

Import this module in ``airflow_local_settings.py``, which every Airflow process loads at startup; see the page
"Benchmarks" of the documentation.
"""

from __future__ import annotations

import importlib

from PIL import Image

from airflow_provider_imagen.catalogue.lookup import all_models

for _name in (
    "download.ip_addresses",
    "api.client",
    "download.downloader",
    "run.input_reader",
    "journal.stores",
    "operators.execution",
    "operators.imagen",
    "operators.state_store",
    "policies.retry",
):
    importlib.import_module(f"airflow_provider_imagen.{_name}")
Image.preinit()
all_models()
