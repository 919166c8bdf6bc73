"""Read what connections were charged, and match it with what output folders record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    ImagenError,
    InvalidArgumentsError,
    InvalidRequestError,
    Problem,
)
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.redaction import scrub
from airflow_provider_imagen.storage.paths import address_of, path_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from airflow.sdk import ObjectStoragePath

    from airflow_provider_imagen.accounting.reconciliation import Reconciliation
    from airflow_provider_imagen.accounting.statement import Statement
    from airflow_provider_imagen.api.client import ApiClient

_MAX_NAME_CHARACTERS = 80


def read_charges(
    clients: Mapping[str, ApiClient],
    *,
    since: datetime | None,
    until: datetime | None,
    on_row: Callable[[], None] = lambda: None,
) -> Statement:
    """
    Return what the keys of connections were charged; connections with the same key count once.

    :param clients: their API clients, by connection id
    :param since: as in :meth:`~airflow_provider_imagen.hooks.imagen.ImagenHook.get_statement`
    :param until: as in :meth:`~airflow_provider_imagen.hooks.imagen.ImagenHook.get_statement`
    :param on_row: called after each row of the request log
    """
    from airflow_provider_imagen.accounting.statement import read_statement

    readers: dict[str, ApiClient] = {}
    accounts = set()
    for conn_id, client in clients.items():
        account = client.settings.account  # the key alone: one host has several names
        if account not in accounts:
            accounts.add(account)
            name = _key_name(client, conn_id)
            readers[f"{name}, {conn_id}" if name in readers else name] = client
    return read_statement(readers, since=since, until=until, now=datetime.now(UTC), wait=time.sleep, on_row=on_row)


def reconcile_charges(
    clients: Mapping[str, ApiClient],
    folders: Iterable[str | Path | ObjectStoragePath],
    *,
    since: datetime | None,
    until: datetime | None,
    verify: bool,
    on_row: Callable[[], None] = lambda: None,
) -> Reconciliation:
    """
    Return what the keys of connections were charged, matched with what output folders record.

    The folders are searched after the log has been read, because running tasks record an image after it was charged.

    :param clients: as in :func:`read_charges`
    :param folders: as in :meth:`~airflow_provider_imagen.hooks.imagen.ImagenHook.reconcile`, like the other parameters
    :param on_row: as in :func:`read_charges`
    :raises InvalidArgumentsError: an address of a folder is empty
    """
    from airflow_provider_imagen.accounting.reconciliation import reconcile
    from airflow_provider_imagen.accounting.recorded_requests import RecordedRequests
    from airflow_provider_imagen.storage.output_folders import find_output_folders, iter_output_folders

    given = [_open(folder) for folder in folders]
    for folder in given:
        next(iter_output_folders(folder))  # a wrong folder is an error before the log is read, which takes minutes
    statement = read_charges(clients, since=since, until=until, on_row=on_row)
    found = {address_of(each): each for folder in given for each in find_output_folders(folder)}
    return reconcile(statement, RecordedRequests(found.values(), verify=verify))


def _open(folder: str | Path | ObjectStoragePath) -> ObjectStoragePath:
    address = path_text(folder)
    if not address.strip():  # would be the working directory
        raise InvalidArgumentsError([Problem("folders", address, "the path or URI of a folder is allowed")])
    return open_folder(address, field="folders")


def _key_name(client: ApiClient, conn_id: str) -> str:
    """
    Return the name and the public prefix of a key, as the API states them; without them, the connection's id.

    :raises AuthenticationError: the key is rejected
    :raises InvalidRequestError: the host is a gateway, which has no request log
    """
    from airflow_provider_imagen.api.retries import resending
    from airflow_provider_imagen.catalogue.availability import is_gateway

    try:
        key = resending(wait=time.sleep)(client.get_key)
    except AuthenticationError:
        raise
    except ImagenError as error:
        if error.status == 404 and is_gateway(client.list_models()):
            raise InvalidRequestError(
                f"The host of the connection {conn_id} is an OpenAI-compatible gateway, which has no request log.",
                status=404,
            ) from error
        return conn_id
    name = f"{key.get('name') or '(unnamed)'} ({key.get('prefix') or '????????'}…)"
    return scrub(name, client.settings.api_key, limit=_MAX_NAME_CHARACTERS)
