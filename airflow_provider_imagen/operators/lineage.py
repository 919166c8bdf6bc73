"""OpenLineage datasets of an attempt: models and input image folders as inputs, the output folder as output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.catalogue.input_images import ImageFile, flatten
from airflow_provider_imagen.operators.dataset_names import host_of, place_of, unsigned

if TYPE_CHECKING:
    from airflow_provider_imagen.run.results import RunResult


class LineageFacts(Struct, frozen=True):
    """
    The inputs and output of one attempt.

    :param api: scheme, host and port of the API
    :param models: ids of the models that made the images, sorted
    :param inputs: addresses of the folders that hold stored input images, sorted
    :param output: address of the output folder; ``None`` if nothing was stored
    :param pictures: number of stored images
    :param bytes: their total size
    """

    api: str
    models: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str | None
    pictures: int
    bytes: int


def lineage_of(result: RunResult, *, base_url: str, output: str | None) -> LineageFacts:
    """
    Return the lineage of a run.

    Input images are reported by folder, like the output: this links the task that uses them to the task that made
    them, and ten thousand inputs do not become ten thousand datasets.

    :param base_url: base URL of the API
    :param output: address of the output folder; ``None`` if images are not stored
    """
    stored = [made.record for made in result.made if made.stored is not None]
    return LineageFacts(
        api=host_of(base_url),
        models=tuple(sorted({record["model"] for record in result.records})),
        inputs=tuple(
            sorted(
                {
                    unsigned(part.address).rpartition("/")[0]
                    for unit in result.plan.units
                    for value in unit.request.body.values()
                    for part in flatten(value)
                    if isinstance(part, ImageFile)
                }
            )
        ),
        output=output if stored else None,
        pictures=len(stored),
        bytes=sum(record["bytes"] for record in stored),
    )


def to_openlineage(facts: LineageFacts) -> Any:
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

    sources = [Dataset(namespace=facts.api, name=model) for model in facts.models]
    for address in facts.inputs:
        place = place_of(address)
        sources.append(Dataset(namespace=place.namespace, name=place.name))
    outputs = []
    if facts.output is not None:
        place = place_of(facts.output)
        statistics = OutputStatisticsOutputDatasetFacet(rowCount=facts.pictures, size=facts.bytes)
        outputs.append(
            OutputDataset(namespace=place.namespace, name=place.name, outputFacets={"outputStatistics": statistics})
        )
    return OperatorLineage(inputs=sources, outputs=outputs)
