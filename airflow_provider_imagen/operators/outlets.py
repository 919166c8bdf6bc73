"""Tell the outlets of a task what it has made."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.definitions.asset import AssetRef

from airflow_provider_imagen.operators.dataset_names import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)


def fill_outlets(
    outlets: Iterable[Any], events: Any, *, summary: Mapping[str, Any], folder: ObjectStoragePath | None
) -> None:
    """
    Give every asset among the outlets an event, and resolve every alias to the folder of this run.

    The pictures are paid for and safe by now, so an outlet that cannot be filled is logged and fails nothing. Outlets
    of other kinds, which Airflow allows, belong to others and are left alone.

    :param events: ``outlet_events`` of the context
    :param summary: becomes the extra of every event
    :param folder: ``None`` when nothing is stored: an alias then stands for nothing
    """
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            _resolve(outlet, events, summary, folder)
        elif isinstance(outlet, (Asset, AssetRef)):
            events[outlet].extra = dict(summary)


def _resolve(alias: AssetAlias, events: Any, summary: Mapping[str, Any], folder: ObjectStoragePath | None) -> None:
    if folder is None:
        log.warning("Asset alias %s gets no event: without output_path there is no folder to name.", alias.name)
        return
    uri = place_of(str(folder)).uri
    try:
        asset = Asset(name=uri, uri=uri)
    except ValueError as error:
        log.warning("Asset alias %s gets no event: %s cannot be an asset (%s).", alias.name, uri, error)
        return
    events[alias].add(asset, extra=dict(summary))
