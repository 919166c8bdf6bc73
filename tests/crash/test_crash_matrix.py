"""
Kill the task with SIGKILL at every step there is, try it again, and look at the bill.

Each try is a process of its own that runs the operator through Airflow's task runner. The ledger of the sandbox says what
was paid. Of one kind of crash alone something is lost, for the API gives an answer only once: when it was billed and
the process ended before the answer was written down. That loss is told, counted and never paid for a second time.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import eventually

from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Painting

    from airflow_provider_imagen.sandbox import Sandbox

PROMPTS = ["one", "two", "three"]
STORES = [
    pytest.param(False, id="task state store"),
    pytest.param(True, id="journal beside the pictures"),
]
