"""
Human review of images, through Airflow's human-in-the-loop operators.

One task before the human-in-the-loop operator builds its text, and one after it selects the chosen images. Any task
that goes through the images can get them with :func:`read_images`::

    @task
    def text(images):
        return review_body(images, task_id="paint")


    @task
    def chosen(images, answer):
        return pick_images(images, answer["chosen_options"])

Stored images are shown through the gallery, so reviewers need no access to the object store, and expired URLs of the
API do not matter. Airflow's permissions for the DAG apply.

For more than a few images, let a person mark them on the gallery's review page. The task that asks is any
human-in-the-loop operator with params, and the next one gets typed values::

    review = HITLOperator(task_id="review", subject="Which are good?", **review_form("paint"))
    paint >> review


    @task
    def favourites(images, answer):
        return [image["path"] for image in read_review(answer, images, task_id="paint").favourites]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypedDict

from msgspec import DecodeError, Struct
from msgspec.json import decode

from airflow_provider_imagen.links.gallery_urls import gallery_root, image_address, remote_link, run_address
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.review_answer import (
    MAX_REASON_CHARACTERS,
    MAX_REASONS,
    OPTION,
    PARAM,
    Choice,
    ReviewSubject,
    answer_schema,
    read_verdicts,
)

MAX_REVIEWED: Final = 60
"""Maximum number of images in one text, more than anybody can compare; the text links to the rest."""

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_MAX_PROMPT: Final = 300
_INDEXES: Final = frozenset({"prompt_index", "image_index"})

_MAX_SEED: Final = 2**31 - 1
"""Largest seed that every model accepts."""

DEFAULT_REASONS: Final = ("Not what was asked for", "Hands or faces", "Text", "Composition", "Style or colours")
"""Reasons to tick on the review page; anything else goes into the free text."""

_PARAM_DESCRIPTION: Final = "The review page fills this in and sends it. Open the page with the link above."

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
    Return Markdown that shows images side by side, numbered from 1, with prompt, model, seed and cost.

    :func:`pick_images` takes these numbers. Prompts are escaped, so they cannot add links or markup.

    :param images: XCom ``images`` of one task instance
    :param task_id: task that generated them
    :param map_index: its map index; -1 if the task is not mapped
    :param dag_id: its DAG; default: the current one
    :param run_id: its run; default: the current one
    :param columns: images per row, 1 to 6
    :raises ValueError: ``columns`` is out of range, or ``images`` is not an XCom ``images``
    :raises StorageError: ``images`` points to a manifest that no longer lists these images
    """
    if not 1 <= columns <= 6:
        raise ValueError(f"columns={columns}: 1 to 6 are allowed")
    dag_id, run_id = _running(dag_id, run_id)
    records = _records(images, (dag_id, run_id, task_id, map_index))
    if not records:
        return "There are no images to review."
    root = gallery_root()
    ids = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    prompts = {str(record.get("prompt") or "") for record in records}
    shown = records[:MAX_REVIEWED]
    cells = [_image(number, record, root=root, ids=ids) for number, record in enumerate(shown, start=1)]
    captions = [_caption(number, record, with_prompt=len(prompts) > 1) for number, record in enumerate(shown, start=1)]
    lines = [_escape(prompt) for prompt in prompts] + [""] if len(prompts) == 1 else []
    lines += [*_table(cells, captions, min(columns, len(shown))), "", _totals(records)]
    if len(records) > MAX_REVIEWED:
        url = run_address(root=root, dag_id=dag_id, run_id=run_id)
        lines.append(f"Only the first {MAX_REVIEWED} are shown here. [See all images]({url}).")
    return "\n".join(lines)


def read_images(
    images: Images,
    *,
    task_id: str,
    map_index: int = -1,
    dag_id: str | None = None,
    run_id: str | None = None,
) -> list[dict[str, Any]]:
    """
    Return the records in XCom ``images``, however many there are: above 64 KB, they are read from the manifest.

    Use it in a task that goes through the images::

        for image in read_images(images, task_id="paint"):
            print(image["path"], image["metadata"])

    :param images: XCom ``images`` of one task instance
    :param task_id: task that generated them
    :param map_index: its map index; -1 if the task is not mapped
    :param dag_id: its DAG; default: the current one
    :param run_id: its run; default: the current one
    :return: one mapping per image, with the fields of
        :class:`~airflow_provider_imagen.image_record.ImageRecord` as keys, those from a manifest also with those of
        :class:`~airflow_provider_imagen.image_record.ManifestLine`; in the order of the prompts
    :raises ValueError: ``images`` is not an XCom ``images``
    :raises StorageError: ``images`` points to a manifest that cannot be read or no longer lists these images
    """
    ids: tuple[Any, ...] = ()
    if isinstance(images, Mapping):
        ids = (*_running(dag_id, run_id), task_id, map_index)
    return [dict(record) for record in _records(images, ids)]


def quote_rest(summary: Record) -> str:
    """
    Return text in Markdown about what the images left out by ``limit`` would cost at most.

    The estimate is their number times the average cost of the images generated so far. That average is what was
    charged, lost charges included, or what the images cost when they were generated, if they were reused. Those of the
    rest that can be reused cost nothing.

    :param summary: XCom ``summary`` of the task instance that generated a part of the list
    :raises ValueError: it is not an XCom ``summary``
    """
    from airflow_provider_imagen.image_record import read_record
    from airflow_provider_imagen.run_report import RunSummary

    found = read_record(RunSummary, summary) if isinstance(summary, Mapping) else None
    if found is None or not {"made", "usd_spent"} <= summary.keys():
        raise ValueError("summary: the XCom 'summary' of a task instance is allowed")
    if not found.beyond_limit:
        return "No images are left to generate."
    rest = f"the other {found.beyond_limit} image{'' if found.beyond_limit == 1 else 's'}"
    usd = found.usd_spent + found.usd_saved
    if not (found.made and usd):
        return f"What {rest} would cost is not known."
    average = usd / found.made
    return (
        f"{rest.capitalize()} would cost at most about {_escape(format_usd(average * found.beyond_limit))}: "
        f"the {found.made} so far cost {_escape(format_usd(usd))}, on average {_escape(format_usd(average))} each. "
        "With reuse, images that are already in the folder are not paid for again."
    )


class ReviewForm(TypedDict):
    """Keyword arguments for ``HITLOperator``, and for any other human-in-the-loop operator with options and params."""

    body: str
    options: list[str]
    params: dict[str, Any]


class ReviewedImage(Struct, frozen=True):
    """
    One image with a person's verdict.

    :param image: its record, as in XCom ``images``
    :param choice: ``favourite``; ``new_seed`` or ``new_prompt`` to generate it again; ``reject``
    :param reasons: what is wrong with it
    :param comment: the same in the person's own words; empty if there are none
    :param new_prompt: the changed prompt; ``None`` unless ``choice`` is ``new_prompt``
    """

    image: dict[str, Any]
    choice: Choice
    reasons: tuple[str, ...] = ()
    comment: str = ""
    new_prompt: str | None = None

    @property
    def prompt_item(self) -> dict[str, Any]:
        """
        The item of an argument ``prompt`` that generates one image in this one's place.

        It has this image's model, API fields, name and metadata. ``new_seed`` replaces the seed if one was requested,
        and the changed prompt replaces the prompt. Reading it raises ``ValueError`` if a field was not recorded; use
        :meth:`prompt_item_with` then.
        """
        return self.prompt_item_with()

    def prompt_item_with(self, **fields: Any) -> dict[str, Any]:
        """
        Return :attr:`prompt_item` with some fields set, because they were not recorded or should change.

        Input images that were embedded, or whose URLs had a query, are never recorded.

        :param fields: keys of the item with their values; ``None`` leaves a key out
        :raises ValueError: another API field was not recorded
        """
        record = self.image
        requested = _requested_fields(record, known=fields.keys())
        if self.choice == "new_seed" and requested.get("seed") is not None:
            requested["seed"] = _next_seed(record)
        metadata = {name: value for name, value in (record.get("metadata") or {}).items() if value is not None}
        item = {"prompt": self.new_prompt or record.get("prompt"), "name": record.get("name"), "metadata": metadata}
        return {name: value for name, value in (requested | item | fields).items() if value not in (None, {})}


class Review(Struct, frozen=True):
    """
    The answer to a review.

    :param images: the images with a verdict, in the order of XCom ``images``
    :param reviewer: name of the person who answered; ``None`` if nobody did before the response timeout
    """

    images: list[ReviewedImage]
    reviewer: str | None = None

    @property
    def favourites(self) -> list[dict[str, Any]]:
        """Records of the favourites."""
        return [reviewed.image for reviewed in self.images if reviewed.choice == "favourite"]

    @property
    def again(self) -> list[dict[str, Any]]:
        """
        Items for the argument ``prompt`` of another task, one for each image to be generated again.

        An empty list skips that task. Reading it raises ``ValueError`` if an API field of one of these images was not
        recorded; use :meth:`again_with` then.
        """
        return self.again_with()

    def again_with(self, **fields: Any) -> list[dict[str, Any]]:
        """
        Return :attr:`again` with some fields set in every item (:meth:`ReviewedImage.prompt_item_with`).

        For example, if the task that made the images got the reference image as a signed URL::

            review.again_with(image_urls=["s3://media/reference.png"])

        :param fields: keys of the items with their values; ``None`` leaves a key out
        :raises ValueError: another API field of one of these images was not recorded
        """
        return [
            reviewed.prompt_item_with(**fields)
            for reviewed in self.images
            if reviewed.choice in ("new_seed", "new_prompt")
        ]


def review_form(task_id: str, *, map_index: int | None = None, reasons: Sequence[str] = DEFAULT_REASONS) -> ReviewForm:
    """
    Return the arguments of a human-in-the-loop operator that lets a person mark the images of a task.

    The body links to the review page, and the gallery of the run does as long as the task waits. The answer goes to
    Airflow with the permissions of the person. Read it in the next task with :func:`read_review`. ::

        review = HITLOperator(task_id="review", subject="Which are good?", **review_form("paint"))
        paint >> review

    Needs Airflow 3.1.3 or later.

    :param task_id: task whose images are under review, with its task groups
    :param map_index: index of its instance if it is mapped; default: that of the human-in-the-loop task itself, as in a
        mapped task group
    :param reasons: what may be wrong with an image, for the person to tick: at most 20, of 1 to 60 characters each
    :raises ValueError: ``reasons`` are too many or too long
    """
    if isinstance(reasons, str) or len(reasons) > MAX_REASONS:
        raise ValueError(f"reasons={reasons!r}: a list of at most {MAX_REASONS} texts is allowed")
    for reason in reasons:
        if not 1 <= len(reason) <= MAX_REASON_CHARACTERS:
            raise ValueError(f"reasons contains {reason!r}: 1 to {MAX_REASON_CHARACTERS} characters are allowed")
    from airflow.sdk import Param

    subject = ReviewSubject(task_id=task_id, map_index=map_index, reasons=tuple(reasons))
    ids = {"dag_id": "dag.dag_id", "run_id": "run_id", "task_id": "task.task_id", "map_index": "ti.map_index"}
    query = "&".join(f"{name}={{{{ {value} | urlencode }}}}" for name, value in ids.items())
    return {
        "body": f"[Look at the images and mark them]({gallery_root()}/review?{query})",
        "options": [OPTION],
        "params": {PARAM: Param([], title="Verdicts", description=_PARAM_DESCRIPTION, **answer_schema(subject))},
    }


def read_review(answer: Record, images: Images, *, task_id: str | None = None, map_index: int = -1) -> Review:
    """
    Return the answer to a review that :func:`review_form` asked for.

    :param answer: return value of the human-in-the-loop task
    :param images: XCom ``images`` of the task instance under review
    :param task_id: the task under review; required if there are so many images that XCom only points to the manifest
    :param map_index: its map index; -1 if it is not mapped
    :return: without any image if nobody answered before the response timeout, and the operator has ``defaults``
    :raises ValueError: ``answer`` is not the answer to a review, was sent without a verdict, or has one on an image
        that is not in ``images`` or was replaced after the person saw it; or ``images`` is not an XCom ``images``
    :raises StorageError: ``images`` points to a manifest that cannot be read or no longer lists these images
    """
    if not isinstance(answer, Mapping):
        raise ValueError(
            f"answer is a {type(answer).__name__}: the return value of a human-in-the-loop task is allowed"
        )
    person = answer.get("responded_by_user")
    reviewer = person.get("name") if isinstance(person, Mapping) else None
    verdicts = {(each.prompt_index, each.image_index): each for each in read_verdicts(answer.get("params_input"))}
    if reviewer is not None and not verdicts:
        raise ValueError(
            f"{PARAM} is empty: the form in Airflow was sent instead of the review page; clear the review to ask again"
        )
    reviewed = []
    for record in _listed_images(images, task_id=task_id, map_index=map_index):
        place = (record["prompt_index"], record["image_index"])
        verdict = verdicts.pop(place, None)
        if verdict is None:
            continue
        if verdict.sha256 not in (None, record.get("sha256")):
            raise ValueError(
                f"{PARAM}: image {place[1]} of prompt {place[0]} is not the one that was reviewed; clear the review to "
                "ask again"
            )
        new_prompt = verdict.prompt if verdict.choice == "new_prompt" else None
        reviewed.append(ReviewedImage(record, verdict.choice, verdict.reasons, verdict.comment, new_prompt))
    for prompt_index, image_index in verdicts:
        raise ValueError(f"{PARAM} contains image {image_index} of prompt {prompt_index}: images has no such image")
    return Review(reviewed, reviewer)


def pick_images(
    images: Images,
    chosen_options: Sequence[str | int],
    *,
    task_id: str | None = None,
    map_index: int = -1,
) -> list[dict[str, Any]]:
    """
    Return the records of the chosen images, in the order of ``images``.

    :param images: XCom ``images`` of the task instance that generated them
    :param chosen_options: numbers returned by the human-in-the-loop operator, from 1 as shown by :func:`review_body`
    :param task_id: task that generated them; required only if ``images`` points to a manifest
    :param map_index: its map index; -1 if the task is not mapped
    :raises ValueError: a number is out of range, ``task_id`` is missing, or ``images`` is not an XCom ``images``
    :raises StorageError: ``images`` points to a manifest that no longer lists these images
    """
    records = _listed_images(images, task_id=task_id, map_index=map_index)
    if isinstance(chosen_options, str) or not isinstance(chosen_options, Sequence):
        raise ValueError(f"chosen_options={chosen_options!r}: a list of image numbers is allowed")
    chosen = set(map(str, chosen_options))
    numbered = {str(number): record for number, record in enumerate(records, start=1)}
    for option in sorted(chosen - numbered.keys()):
        raise ValueError(f"chosen_options contains {option[:50]!r}: the images are numbered 1 to {len(records)}")
    return [record for number, record in numbered.items() if number in chosen]


def _listed_images(images: Images, *, task_id: str | None, map_index: int) -> list[dict[str, Any]]:
    if isinstance(images, Mapping) and task_id is None:
        raise ValueError("task_id=None: required, because images points to a manifest")
    return read_images(images, task_id=task_id or "", map_index=map_index)


def _requested_fields(record: Record, *, known: Collection[str]) -> dict[str, Any]:
    """
    Return the model and the API fields that generated an image, without the number of images.

    :param known: names of fields that the caller sets, so that they need not have been recorded
    :raises ValueError: another field was not recorded
    """
    from airflow_provider_imagen.api.fields import COUNT_FIELDS
    from airflow_provider_imagen.operators.arguments import API_ARGUMENTS

    where = f"image {record['image_index']} of prompt {record['prompt_index']}"
    try:
        recorded = decode(record.get("arguments") or "", type=dict[str, Any])
    except (DecodeError, RecursionError):
        if not known:
            raise ValueError(f"{where}: its arguments were not recorded; set the API fields with again_with") from None
        recorded = {}
    parameters = recorded.get("parameters")
    fields = {name: recorded[name] for name in API_ARGUMENTS if name in recorded}
    fields |= parameters if isinstance(parameters, dict) else {}
    fields = {name: value for name, value in fields.items() if name not in COUNT_FIELDS}
    for name, value in fields.items():
        if value is None and name not in known:
            raise ValueError(f"{where}: {name} was not recorded; set it yourself, as in again_with({name}=...)")
    # A fallback model may have generated the image instead of the one that was requested.
    return fields | {"model": record.get("model") or recorded.get("model")}


def _next_seed(record: Record) -> int:
    """Return a seed that depends on the image alone, so that a cleared task makes the same request again."""
    old = (record.get("sha256"), record.get("seed"), record["prompt_index"], record["image_index"])
    return int(hashlib.sha256(repr(old).encode()).hexdigest(), 16) % _MAX_SEED + 1


def _running(dag_id: str | None, run_id: str | None) -> tuple[str, str]:
    """Return the DAG and run ids, with those of the current task in place of ``None``."""
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
        return _read_listed_records(images, ids)
    if isinstance(images, str) or not isinstance(images, Sequence):
        raise ValueError(f"images is a {type(images).__name__}: the XCom 'images' of a task instance is allowed")
    records = list(images)
    if not all(isinstance(record, Mapping) and record.keys() >= _INDEXES for record in records):
        raise ValueError(
            "images contains entries that are not image records; for a mapped task, pass the XCom 'images' of one task "
            "instance, with its map_index"
        )
    return records


def _read_listed_records(images: Mapping[str, Any], ids: tuple[Any, ...]) -> list[Record]:
    from airflow_provider_imagen.exceptions import StorageError
    from airflow_provider_imagen.hooks.folders import open_folder
    from airflow_provider_imagen.storage.manifest import read_manifest, recorded_lines
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

    keys = ("dag_id", "run_id", "task_id", "map_index")
    folder = open_folder(images["manifest"]).parent
    own = recorded_lines(folder, TaskInstanceKey(**dict(zip(keys, ids, strict=True))))
    lines = [line.to_json() for line in own] or read_manifest(folder)
    records: list[Record] = [line for line in lines if tuple(line.get(key) for key in keys) == ids]
    if not records and images.get("count"):
        raise StorageError(
            f"{images['manifest']} lists none of the {images['count']} images of {ids[2]!r} (map index {ids[3]}) in "
            "this run: the file was deleted or replaced, or task_id or map_index refers to another task."
        )
    return records


def _image(number: int, record: Record, *, root: str, ids: dict[str, Any]) -> str:
    """Return Markdown that shows an image and links to its page."""
    indexes = ids | {"prompt_index": record["prompt_index"], "image_index": record["image_index"]}
    page = image_address(root=root, **indexes)
    if record.get("mime_type") == "image/svg+xml":  # the gallery creates no previews of these
        return f"[Image {number} (SVG)]({page})"
    source: str | None
    if record.get("path"):
        source = image_address(root=root, **indexes, size="thumbnail", v=str(record.get("sha256") or "")[:12])
    else:
        url = record.get("url")
        source = remote_link(url) if isinstance(url, str) else None
    return f"[![Image {number}]({_encode_target(source)})]({page})" if source else f"[Image {number}]({page})"


def _caption(number: int, record: Record, *, with_prompt: bool) -> str:
    """
    Return an image's number, prompt, model, seed and cost as Markdown.

    :param with_prompt: ``False`` if all images share one prompt, which is shown above them instead
    """
    parts = [str(record.get("prompt") or "")] if with_prompt else []
    parts += [str(record["model"])] if record.get("model") else []
    parts += [f"seed {record['seed']}"] if record.get("seed") is not None else []
    parts.append(_reused([record]) if record.get("reused_from") else _cost(record.get("usd")))
    return f"**{number}** · {' · '.join(_escape(part) for part in parts if part)}"


def _table(images: list[str], captions: list[str], columns: int) -> list[str]:
    """Return a Markdown table with alternating rows of images and captions, as a cell cannot contain line breaks."""
    gaps = [""] * (-len(images) % columns)
    images, captions = images + gaps, captions + gaps
    rows = [
        _row(cells[start : start + columns]) for start in range(0, len(images), columns) for cells in (images, captions)
    ]
    return [_row([""] * columns), _row(["---"] * columns), *rows]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _totals(records: Sequence[Record]) -> str:
    known = [record["usd"] for record in records if isinstance(record.get("usd"), (int, float))]
    about = "" if len(known) == len(records) else "at least "
    plural = "" if len(records) == 1 else "s"
    reused = [record for record in records if record.get("reused_from")]
    how = f" ({len(reused)} {_reused(reused)})" if reused else ""
    return f"{len(records)} image{plural}, {about}{_escape(f'{_cost(sum(known))}{how}')}."


def _reused(records: Sequence[Record]) -> str:
    """Return that images were reused, and what they once cost, as far as known."""
    saved = [record["usd_saved"] for record in records if isinstance(record.get("usd_saved"), (int, float))]
    return f"reused, once {_cost(sum(saved))}" if saved else "reused"


def _cost(usd: Any) -> str:
    return format_usd(usd) if isinstance(usd, (int, float)) else "cost unknown"


def _escape(text: str) -> str:
    """Return text on one line, shortened and with all Markdown punctuation escaped."""
    text = " ".join(text.split())
    if len(text) > _MAX_PROMPT:
        text = f"{text[: _MAX_PROMPT - 1]}…"
    return _PUNCTUATION.sub(r"\\\1", text)


def _encode_target(url: str) -> str:
    """Percent-encode the characters of a URL that would end a Markdown link."""
    return re.sub(r"[\s()<>\\|]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), url)
