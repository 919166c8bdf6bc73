"""Asset events for the outlets of a task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.definitions.asset import AssetRef

from airflow_provider_imagen.operators.dataset_names import location_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)


def fill_outlets(
    outlets: Iterable[Any], events: Any, *, summary: Mapping[str, Any], folder: ObjectStoragePath | None
) -> None:
    """
    Add the summary to the event of every asset outlet, and resolve every alias to the output folder.

    An outlet that cannot be filled is only logged, because the images are already paid for and stored. Other outlets
    are left alone.

    :param events: ``outlet_events`` of the context
    :param summary: extra of every event
    :param folder: output folder; ``None`` if nothing is stored, and aliases then get no event
    """
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            _resolve(outlet, events, summary, folder)
        elif isinstance(outlet, (Asset, AssetRef)):
            events[outlet].extra = dict(summary)


def _resolve(alias: AssetAlias, events: Any, summary: Mapping[str, Any], folder: ObjectStoragePath | None) -> None:
    if folder is None:
        log.warning("Asset alias %s gets no event: it needs output_path, the folder it resolves to.", alias.name)
        return
    uri = location_of(str(folder)).uri
    try:
        asset = Asset(name=uri, uri=uri)
    except ValueError as error:
        log.warning("Asset alias %s gets no event: %s is not a valid asset URI (%s).", alias.name, uri, error)
        return
    events[alias].add(asset, extra=dict(summary))
