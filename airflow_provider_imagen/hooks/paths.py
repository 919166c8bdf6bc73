"""Open folders and files where a DAG names them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def open_folder(address: str) -> ObjectStoragePath:
    """
    Open a folder or a file.

    :param address: what ``ObjectStoragePath`` takes, connection id included; a path without scheme is one on this
        machine, relative to the working directory
    """
    from airflow.sdk import ObjectStoragePath

    if "://" not in address:
        address = f"file://{os.path.abspath(os.path.expanduser(address))}"
    return ObjectStoragePath(address)
