"""OpenLineage datasets of an attempt: models and input image folders as inputs, the output folder as output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.catalogue.input_images import ImageFile, flatten
from airflow_provider_imagen.operators.dataset_names import host_of, location_of, without_signature

if TYPE_CHECKING:
    from airflow_provider_imagen.run.results import RunResult


class Lineage(Struct, frozen=True):
    """
    The inputs and output of one attempt.

    :param api: scheme, host and port of the API
    :param models: ids of the models that generated the images, sorted
    :param inputs: addresses of the folders that hold stored input images or reused images, sorted
    :param output: address of the output folder; ``None`` if nothing was stored
    :param images: number of stored images
    :param bytes: their total size
    """

    api: str
    models: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str | None
    images: int
    bytes: int


def lineage_of(result: RunResult, *, base_url: str, output: str | None) -> Lineage:
    """
    Return the lineage of a run.

    Input images and reused images are reported by folder, like the output: this connects the task that uses them to the
    task that generated them, and ten thousand inputs do not become ten thousand datasets.

    :param base_url: base URL of the API
    :param output: address of the output folder; ``None`` if images are not stored
    """
    stored = [made.record for made in result.made if made.file is not None]
    written = {_folder_of(record.path) for record in stored if record.path is not None}
    reused = {_folder_of(record.reused_from) for record in stored if record.reused_from is not None}
    sent = {
        _folder_of(part.address)
        for planned in result.plan.requests
        for value in planned.request.body.values()
        for part in flatten(value)
        if isinstance(part, ImageFile)
    }
    return Lineage(
        api=host_of(base_url),
        models=tuple(sorted({record.model for record in result.records if record.model})),
        inputs=tuple(sorted(sent | reused - written)),
        output=output if stored else None,
        images=len(stored),
        bytes=sum(record.bytes or 0 for record in stored),
    )


def _folder_of(address: str) -> str:
    return without_signature(address).rpartition("/")[0]


def to_openlineage(lineage: Lineage) -> Any:
    """Return an ``OperatorLineage``, or ``None`` if the OpenLineage provider is not installed."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    from airflow.providers.common.compat.openlineage.facet import (
        Dataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )

    sources = [Dataset(namespace=lineage.api, name=model) for model in lineage.models]
    for address in lineage.inputs:
        location = location_of(address)
        sources.append(Dataset(namespace=location.namespace, name=location.name))
    outputs = []
    if lineage.output is not None:
        location = location_of(lineage.output)
        statistics = OutputStatisticsOutputDatasetFacet(rowCount=lineage.images, size=lineage.bytes)
        facets = {"outputStatistics": statistics}
        outputs.append(OutputDataset(namespace=location.namespace, name=location.name, outputFacets=facets))
    return OperatorLineage(inputs=sources, outputs=outputs)
