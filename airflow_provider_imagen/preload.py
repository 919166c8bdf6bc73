"""
Import what every task of this package needs, once, in the processes that tasks are forked from.

For ``airflow_local_settings.py``, which every Airflow process reads when it starts; see the README, "Performance".
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
