"""Open folders and files where a DAG names them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow_provider_imagen.api.secrets import without_query
from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def open_folder(address: str) -> ObjectStoragePath:
    """
    Open a folder or a file.

    :param address: what ``ObjectStoragePath`` takes, connection id included; a path without scheme is one on this
        machine, relative to the working directory
    :raises InvalidArgumentsError: nothing is known that speaks to such a store
    """
    from airflow_provider_imagen._compat import open_path

    if "://" not in address:
        address = f"file://{os.path.abspath(os.path.expanduser(address))}"
    try:
        return open_path(address)
    except ValueError as error:
        known = "a path on this machine, s3://, gs://, abfs://, or what another installed provider brings"
        raise InvalidArgumentsError([Problem("output_path", without_query(address), f"{known} is allowed")]) from error
