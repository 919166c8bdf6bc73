"""What OpenLineage is told: the model at the API and the folders of input pictures as sources, the folder as output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.catalogue.input_images import PictureFile, flatten
from airflow_provider_imagen.operators.dataset_names import host_of, place_of, unsigned

if TYPE_CHECKING:
    from airflow_provider_imagen.run.results import RunResult


class LineageFacts(Struct, frozen=True):
    """
    Where the pictures of one try came from and where they went.

    :param api: scheme and host of the API
    :param models: ids of the models that made pictures, sorted
    :param inputs: addresses of the folders of stored input pictures, sorted
    :param output: address of the folder, ``None`` when nothing is stored
    :param pictures: how many are stored
    :param bytes: their size in all
    """

    api: str
    models: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str | None
    pictures: int
    bytes: int


def lineage_of(result: RunResult, *, base_url: str, output: str | None) -> LineageFacts:
    """
    Collect the facts of a run.

    Input pictures are told by their folders, as the output is: so the task that made them and the one that uses them
    meet, and ten thousand prompts do not make ten thousand sources.

    :param base_url: of the API
    :param output: address of the folder, ``None`` when nothing is stored
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
                    if isinstance(part, PictureFile)
                }
            )
        ),
        output=output if stored else None,
        pictures=len(stored),
        bytes=sum(record["bytes"] for record in stored),
    )


def to_openlineage(facts: LineageFacts) -> Any:
    """
    Put the facts into OpenLineage's terms.

    :return: an ``OperatorLineage``, or ``None`` when the OpenLineage provider is not installed
    """
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
