"""
What a review asks of a person and what comes back: shared by the review page, the task that asks, and the next task.

The question is a human-in-the-loop task with one option and one param, :data:`PARAM`. The JSON Schema of the param
says which images are under review (:class:`ReviewSubject`), and its value is the answer, a list of :class:`Verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, ValidationError, convert, to_builtins
from msgspec.json import schema_components

PARAM: Final = "verdicts"
"""Name of the param that holds the answer."""

OPTION: Final = "Send the review"
"""The only option of the question, which is also the label of its button in Airflow."""

MAX_VERDICTS: Final = 10_000
MAX_REASONS: Final = 20
MAX_REASON_CHARACTERS: Final = 60
MAX_COMMENT_CHARACTERS: Final = 2_000
MAX_PROMPT_CHARACTERS: Final = 10_000

_SUBJECT: Final = "imagen_review"
"""Key of the :class:`ReviewSubject` in the schema of the param."""

Choice = Literal["favourite", "new_seed", "new_prompt", "reject"]
Reason = Annotated[str, Meta(min_length=1, max_length=MAX_REASON_CHARACTERS)]
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class ReviewSubject(Struct, frozen=True):
    """
    What a question is about.

    :param task_id: task whose images are under review
    :param map_index: index of its instance; ``None`` for the same index as that of the task that asks
    :param reasons: reasons to choose from, at most 20 of 60 characters each
    """

    task_id: str
    map_index: int | None = None
    reasons: Annotated[tuple[Reason, ...], Meta(max_length=MAX_REASONS)] = ()


class Verdict(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    What a person says about one image.

    :param prompt_index: index of the prompt in the reviewed task, from 0
    :param image_index: index of the image among those of its prompt, from 0
    :param choice: ``favourite``; ``new_seed`` or ``new_prompt`` to generate it again; ``reject``
    :param sha256: digest of the file that the person saw, in hex; ``None`` if unknown
    :param reasons: what is wrong with it, at most 20 reasons of 60 characters each
    :param comment: the same in the person's own words, at most 2,000 characters
    :param prompt: the changed prompt, at most 10,000 characters; required for ``new_prompt``
    """

    prompt_index: Index
    image_index: Index
    choice: Choice
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None
    reasons: Annotated[tuple[Reason, ...], Meta(max_length=MAX_REASONS)] = ()
    comment: Annotated[str, Meta(max_length=MAX_COMMENT_CHARACTERS)] = ""
    prompt: Annotated[str, Meta(max_length=MAX_PROMPT_CHARACTERS)] | None = None


def answer_schema(subject: ReviewSubject) -> dict[str, Any]:
    """Return the JSON Schema of the param, by which Airflow validates an answer."""
    _, components = schema_components([Verdict])
    item = {name: value for name, value in components["Verdict"].items() if name not in ("title", "description")}
    schema: dict[str, Any] = to_builtins(  # which makes tuples lists
        {"type": "array", "items": item, "maxItems": MAX_VERDICTS, _SUBJECT: subject}
    )
    return schema


def read_subject(params: Mapping[str, Any]) -> ReviewSubject | None:
    """
    Return what a question is about.

    :param params: the params of a human-in-the-loop task, as Airflow's API returns them
    :return: ``None`` if the task does not ask for a review of images
    """
    try:
        return convert(params[PARAM]["schema"][_SUBJECT], ReviewSubject)
    except (KeyError, TypeError, ValidationError):
        return None


def read_verdicts(params_input: Any) -> list[Verdict]:
    """
    Return the verdicts of an answer.

    :param params_input: the values that the person has sent, by param
    :raises ValueError: it is not the answer to a review; or there are two verdicts on one image, or one that asks for
        a changed prompt without giving it
    """
    value = params_input.get(PARAM) if isinstance(params_input, Mapping) else None
    try:
        verdicts: list[Verdict] = convert(value, Annotated[list[Verdict], Meta(max_length=MAX_VERDICTS)])
    except ValidationError as error:
        raise ValueError(f"{PARAM}: {error}") from None
    seen: set[tuple[int, int]] = set()
    for verdict in verdicts:
        place = (verdict.prompt_index, verdict.image_index)
        name = f"image {place[1]} of prompt {place[0]}"
        if place in seen:
            raise ValueError(f"{PARAM} has two verdicts on {name}: one per image is allowed")
        if verdict.choice == "new_prompt" and not (verdict.prompt or "").strip():
            raise ValueError(f"{PARAM}: prompt={verdict.prompt!r} for {name}: 'new_prompt' requires a prompt")
        seen.add(place)
    return verdicts
