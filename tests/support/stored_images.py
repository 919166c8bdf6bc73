"""A folder as tasks leave it: images from the sandbox with metadata, previews and a manifest, without running a DAG."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.storage.manifest import manifest_line, write_manifest
from airflow_provider_imagen.storage.provenance import Provenance
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MODEL = "imagen-3.0-generate-002"


def store_images(
    folder: Path, items: Sequence[str | Mapping[str, Any]], *, run_id: str = "run", has_metadata: bool = True
) -> None:
    """
    Store the images of prompts with the connection ``imagen_default``, as one task of the DAG ``postcards``.

    :param items: prompts, or mappings of API fields; ``model`` is Imagen 3 unless given
    :param run_id: makes the file names unique, too
    :param has_metadata: whether the metadata is embedded
    """
    ti_key = TaskInstanceKey(dag_id="postcards", task_id="paint", run_id=run_id)
    hook = ImagenHook()
    lines = []
    for index, item in enumerate(items):
        fields: dict[str, Any] = {"model": MODEL, **({"prompt": item} if isinstance(item, str) else item)}
        prompt, model, seed = fields.pop("prompt"), fields.pop("model"), fields.pop("seed", None)
        (generation,) = hook.generate_images(prompt, model=model, seed=seed, parameters=fields)
        usd = None if generation.usd is None else float(generation.usd) / len(generation.urls)
        for number, url in enumerate(generation.urls):
            known: dict[str, Any] = {"prompt": prompt, "model": model, "inference_id": generation.inference_id}
            provenance = Provenance(ti_key=ti_key, seed=seed, parameters=fields, **known) if has_metadata else None
            saved = save_image(
                hook.download(url),
                folder=folder,
                stem=f"{run_id}-{index:03}-{number}",
                provenance=provenance,
                thumbnail_pixels=32,
            )
            record = ImageRecord.of(saved.file, prompt_index=index, image_index=number, usd=usd, seed=seed, **known)
            lines.append(manifest_line(record, saved.file, ti_key=ti_key, created_at=datetime.now(UTC)))
    write_manifest(folder, ti_key=ti_key, lines=lines)
    hook.close()
