"""The environment of Airflow's own commands."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def as_airflow_command() -> Iterator[None]:
    """
    Set up the environment of Airflow's own commands: access to connections in its database, and only error logs.

    Output of Airflow and of DAG files goes to stderr, so that programs can read the report on stdout.
    """
    environment = {"_AIRFLOW_PROCESS_CONTEXT": "server", "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    added = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)
