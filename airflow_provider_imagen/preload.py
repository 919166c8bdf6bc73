"""
Import what every task of this package needs, once, in the processes that tasks are forked from.

For ``airflow_local_settings.py``, which every Airflow process reads when it starts; see the README, "Performance".
"""

from __future__ import annotations

import importlib

from PIL import Image

from airflow_provider_imagen.api.catalogue import all_models

for _name in (
    "api.addresses",
    "api.client",
    "api.download",
    "generation.inputs",
    "journal.stores",
    "operators.execution",
    "operators.imagen",
    "operators.state_store",
    "policies.retry",
):
    importlib.import_module(f"airflow_provider_imagen.{_name}")
Image.preinit()
all_models()
