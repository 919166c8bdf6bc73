"""Read what connections were charged, and match it with what output folders record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

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
        account = (client.settings.base_url, client.settings.account)
        if account not in accounts:
            accounts.add(account)
            name = _key_name(client)
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

    The folders are read after the log, because running tasks record an image after it was charged.

    :param clients: as in :func:`read_charges`
    :param folders: as in :meth:`~airflow_provider_imagen.hooks.imagen.ImagenHook.reconcile`, like the other parameters
    :param on_row: as in :func:`read_charges`
    """
    from airflow_provider_imagen.accounting.reconciliation import reconcile
    from airflow_provider_imagen.accounting.recorded_requests import RecordedRequests
    from airflow_provider_imagen.storage.output_folders import find_output_folders

    given = [open_folder(path_text(folder), field="folders") for folder in folders]
    found = {address_of(each): each for folder in given for each in find_output_folders(folder)}
    statement = read_charges(clients, since=since, until=until, on_row=on_row)
    return reconcile(statement, RecordedRequests(found.values(), verify=verify))


def _key_name(client: ApiClient) -> str:
    """Return the name and the public prefix of a key, as the API states them."""
    key = client.get_key()
    name = f"{key.get('name') or '(unnamed)'} ({key.get('prefix') or '????????'}…)"
    return scrub(name, client.settings.api_key, limit=_MAX_NAME_CHARACTERS)
