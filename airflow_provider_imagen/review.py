"""
Human review of images, through Airflow's human-in-the-loop operators.

One task before the human-in-the-loop operator builds its text, and one after it selects the chosen images::

    @task
    def text(images):
        return review_body(images, task_id="paint")


    @task
    def chosen(images, answer):
        return pick_images(images, answer["chosen_options"])

Stored pictures are shown through the gallery, so reviewers need no access to the object store, and the API's URLs may
have expired. Airflow's permissions for the DAG decide who can see them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from airflow_provider_imagen.links.gallery_urls import gallery_root, picture_address, remote_link, run_address

MAX_REVIEWED: Final = 60
"""Maximum number of pictures in one text, more than anybody can compare; a link leads to the rest."""

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_MAX_PROMPT: Final = 300
_PLACE: Final = frozenset({"prompt_index", "image_index"})

Record = Mapping[str, Any]
Images = Sequence[Record] | Mapping[str, Any]
"""XCom ``images`` of a task: a list of records, or ``{"manifest": …, "count": …}`` if they are too large."""


def review_body(
    images: Images,
    *,
    task_id: str,
    map_index: int = -1,
    dag_id: str | None = None,
    run_id: str | None = None,
    columns: int = 2,
) -> str:
    """
    Return Markdown that shows pictures side by side, numbered from 1, with prompt, model, seed and cost.

    :func:`pick_images` takes these numbers. Prompts are escaped, so they cannot add links or markup.

    :param images: XCom ``images`` of one task instance
    :param task_id: the task that made them
    :param map_index: its map index; -1 if the task is not mapped
    :param dag_id: its DAG; default: the running one
    :param run_id: its run; default: the running one
    :param columns: pictures per row, 1 to 6
    :raises ValueError: ``columns`` is out of range, or ``images`` is not an XCom ``images``
    :raises StorageError: ``images`` points to a manifest that no longer lists these pictures
    """
    if not 1 <= columns <= 6:
        raise ValueError(f"columns={columns}: 1 to 6 are allowed")
    dag_id, run_id = _running(dag_id, run_id)
    records = _records(images, (dag_id, run_id, task_id, map_index))
    if not records:
        return "There is no picture to look at."
    root = gallery_root()
    ids = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    prompts = {str(record.get("prompt") or "") for record in records}
    shown = records[:MAX_REVIEWED]
    pictures = [_picture(number, record, root=root, ids=ids) for number, record in enumerate(shown, start=1)]
    captions = [_caption(number, record, alone=len(prompts) == 1) for number, record in enumerate(shown, start=1)]
    lines = [_escape(prompt) for prompt in prompts] + [""] if len(prompts) == 1 else []
    lines += [*_table(pictures, captions, min(columns, len(shown))), "", _sums(records)]
    if len(records) > MAX_REVIEWED:
        address = run_address(root=root, dag_id=dag_id, run_id=run_id)
        lines.append(f"Only the first {MAX_REVIEWED} are shown here; [see all of them]({address}).")
    return "\n".join(lines)


def pick_images(
    images: Images,
    chosen_options: Sequence[str | int],
    *,
    task_id: str | None = None,
    map_index: int = -1,
) -> list[dict[str, Any]]:
    """
    Return the records of the chosen images, in the order of ``images``.

    :param images: XCom ``images`` of the task instance that made them
    :param chosen_options: numbers that the human-in-the-loop operator returned, from 1 as shown by :func:`review_body`
    :param task_id: the task that made them; required only if ``images`` points to a manifest
    :param map_index: its map index; -1 if the task is not mapped
    :raises ValueError: a number is out of range, ``task_id`` is missing, or ``images`` is not an XCom ``images``
    :raises StorageError: ``images`` points to a manifest that no longer lists these images
    """
    ids: tuple[Any, ...] = ()
    if isinstance(images, Mapping):
        if task_id is None:
            raise ValueError("task_id is needed when images points to a manifest")
        ids = (*_running(None, None), task_id, map_index)
    records = _records(images, ids)
    if isinstance(chosen_options, str) or not isinstance(chosen_options, Sequence):
        raise ValueError(f"chosen_options={chosen_options!r}: a list of the pictures' numbers is allowed")
    chosen = set(map(str, chosen_options))
    numbered = {str(number): record for number, record in enumerate(records, start=1)}
    for option in sorted(chosen - numbered.keys()):
        raise ValueError(f"chosen_options has {option[:50]!r}: the pictures are numbered 1 to {len(records)}")
    return [dict(record) for number, record in numbered.items() if number in chosen]


def _running(dag_id: str | None, run_id: str | None) -> tuple[str, str]:
    """Return the DAG and run ids, with those of the running task in place of ``None``."""
    if dag_id is not None and run_id is not None:
        return dag_id, run_id
    from airflow.sdk import get_current_context

    ti: Any = get_current_context()["ti"]
    return dag_id or ti.dag_id, run_id or ti.run_id


def _records(images: Images, ids: tuple[Any, ...]) -> list[Record]:
    """
    Return the records, read from the manifest if XCom only points to it.

    :param ids: DAG id, run id, task id and map index, which select the task instance's lines in a manifest
    """
    if isinstance(images, Mapping) and isinstance(images.get("manifest"), str):
        return _listed_records(images, ids)
    if isinstance(images, str) or not isinstance(images, Sequence):
        raise ValueError(f"images is a {type(images).__name__}: the XCom 'images' of a task instance is allowed")
    records = list(images)
    if not all(isinstance(record, Mapping) and record.keys() >= _PLACE for record in records):
        raise ValueError(
            "images has entries that are no records of pictures; of a mapped task, give the XCom 'images' of one "
            "instance at a time, with its map_index"
        )
    return records


def _listed_records(images: Mapping[str, Any], ids: tuple[Any, ...]) -> list[Record]:
    from airflow_provider_imagen.exceptions import StorageError
    from airflow_provider_imagen.hooks.paths import open_folder
    from airflow_provider_imagen.storage.manifest import read_manifest

    keys = ("dag_id", "run_id", "task_id", "map_index")
    lines = read_manifest(open_folder(images["manifest"]).parent)
    records: list[Record] = [line for line in lines if tuple(line.get(key) for key in keys) == ids]
    if not records and images.get("count"):
        raise StorageError(
            f"{images['manifest']} lists none of the {images['count']} pictures of {ids[2]!r} (map index {ids[3]}) in "
            "this run: the file is gone or was replaced, or task_id or map_index name another task."
        )
    return records


def _picture(number: int, record: Record, *, root: str, ids: dict[str, Any]) -> str:
    """Return the Markdown of a picture that links to its page."""
    place = ids | {"prompt_index": record["prompt_index"], "image_index": record["image_index"]}
    page = picture_address(root=root, **place)
    if record.get("mime_type") == "image/svg+xml":  # the gallery has no previews of these
        return f"[Picture {number} (SVG)]({page})"
    source: str | None
    if record.get("path"):
        source = picture_address(root=root, **place, size="thumbnail", v=str(record.get("sha256") or "")[:12])
    else:
        url = record.get("url")
        source = remote_link(url) if isinstance(url, str) else None
    return f"[![Picture {number}]({_target(source)})]({page})" if source else f"[Picture {number}]({page})"


def _caption(number: int, record: Record, *, alone: bool) -> str:
    """
    Return a picture's number, prompt, model, seed and cost as Markdown.

    :param alone: whether all pictures share one prompt, which is shown above them instead
    """
    facts = [] if alone else [str(record.get("prompt") or "")]
    facts += [str(record["model"])] if record.get("model") else []
    facts += [f"seed {record['seed']}"] if record.get("seed") is not None else []
    facts.append(_cost(record.get("usd")))
    return f"**{number}** · {' · '.join(_escape(fact) for fact in facts if fact)}"


def _table(pictures: list[str], captions: list[str], columns: int) -> list[str]:
    """Return a Markdown table that alternates rows of pictures and captions, because a cell cannot hold two lines."""
    gaps = [""] * (-len(pictures) % columns)
    pictures, captions = pictures + gaps, captions + gaps
    rows = [
        _row(cells[start : start + columns])
        for start in range(0, len(pictures), columns)
        for cells in (pictures, captions)
    ]
    return [_row([""] * columns), _row(["---"] * columns), *rows]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sums(records: Sequence[Record]) -> str:
    known = [record["usd"] for record in records if isinstance(record.get("usd"), (int, float))]
    about = "" if len(known) == len(records) else "at least "
    plural = "" if len(records) == 1 else "s"
    return f"{len(records)} picture{plural}, {about}{_escape(_cost(sum(known)))}."


def _cost(usd: Any) -> str:
    return f"{usd:.4f} USD" if isinstance(usd, (int, float)) else "cost unknown"


def _escape(text: str) -> str:
    """Return text on one line, shortened and with all Markdown punctuation escaped."""
    text = " ".join(text.split())
    if len(text) > _MAX_PROMPT:
        text = f"{text[: _MAX_PROMPT - 1]}…"
    return _PUNCTUATION.sub(r"\\\1", text)


def _target(url: str) -> str:
    """Percent-encode the characters of a URL that would end a Markdown link."""
    return re.sub(r"[\s()<>\\|]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), url)
