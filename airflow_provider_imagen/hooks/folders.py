"""Open the folders and files that DAGs and the configuration name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem
from airflow_provider_imagen.signed_urls import without_query

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def open_folder(address: str, *, field: str = "output_path") -> ObjectStoragePath:
    """
    Return the path of a folder or file.

    :param address: as for ``ObjectStoragePath``, with an optional connection id; without a scheme, a local path,
        relative to the working directory
    :param field: argument or setting to name in the error
    :raises InvalidArgumentsError: no installed provider supports this kind of store
    """
    from airflow_provider_imagen._compat import open_path

    if "://" not in address:
        address = f"file://{os.path.abspath(os.path.expanduser(address))}"
    try:
        return open_path(address)
    except ValueError as error:
        allowed = "a local path, s3://, gs://, abfs:// or a scheme of another installed provider is allowed"
        raise InvalidArgumentsError([Problem(field, without_query(address), allowed)]) from error


def open_input_roots() -> list[ObjectStoragePath] | None:
    """
    Return the folders in ``[imagen] input_roots``; ``None`` if the setting is empty.

    :raises InvalidArgumentsError: one is a relative path, or its kind of store is not supported
    """
    from airflow_provider_imagen._compat import get_input_roots

    addresses = get_input_roots()
    for address in addresses:
        if "://" not in address and not os.path.isabs(os.path.expanduser(address)):
            raise InvalidArgumentsError(
                [
                    Problem(
                        "[imagen] input_roots",
                        address,
                        "an absolute path or a URI such as s3://bucket/folder is allowed",
                    )
                ]
            )
    return [open_folder(address, field="[imagen] input_roots") for address in addresses] or None
