"""
Build the requests for one prompt, and reject what the chosen model would refuse or silently ignore. Pure.

The API silently drops unknown fields, and its models use different names for the same thing. So ``num_images``,
``aspect_ratio``, ``input_images`` and ``convert_base64_to_url`` are translated into the chosen model's own fields,
every other argument must be one of its fields, and all problems are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.api.data_uris import plain_data_uris
from airflow_provider_imagen.api.fields import (
    BASE64_FIELDS,
    COUNT_FIELDS,
    IMAGE_FIELDS,
    INPUT_FIELDS,
    SIZE_FIELDS,
    read_whole_number,
)
from airflow_provider_imagen.catalogue.aspect_ratio import ratios_offered, read_ratio, requested_ratio, size_for
from airflow_provider_imagen.catalogue.input_images import (
    INPUT_ARGUMENT,
    MAX_INLINE_BYTES,
    ImageFile,
    flatten,
    limits_for,
)
from airflow_provider_imagen.catalogue.longer_prompts import advise_longer_prompt
from airflow_provider_imagen.catalogue.lookup import Endpoint, Model, find_model, max_images_of
from airflow_provider_imagen.catalogue.prompt_text import prompt_problem, text_problem
from airflow_provider_imagen.catalogue.validation import check_field, coerce, describe, problem_with, show
from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

MAX_IMAGES_PER_PROMPT = 50
"""Most images per prompt where the model sets no limit itself, so that a typo cannot cost a fortune."""

_MAX_DEPTH = 20  # more than any API field nests

GENERATIONS_PATH = "/v1/images/generations"


class ImageRequest(Struct, frozen=True):
    """
    One paid POST.

    :param path: ``/v1/images/generations``, or ``/v1/images/edits`` for models that take uploads
    :param body: JSON fields (form fields for edits), always with ``model``. A stored image is a
        :class:`~airflow_provider_imagen.catalogue.input_images.ImageFile`, replaced by its bytes when sent
    :param expected_images: number of images it should return
    :param returns_base64: whether the response contains base64 rather than URLs
    """

    path: str
    body: Mapping[str, Any]
    expected_images: int
    returns_base64: bool

    @property
    def aspect_ratio(self) -> Fraction | None:
        """Width divided by height of the requested images; ``None`` if left to the model."""
        return requested_ratio(self.body)


def build_requests(
    arguments: Mapping[str, Any], *, can_store: bool, where: str = "", item_keys: Collection[str] = ()
) -> tuple[ImageRequest, ...]:
    """
    Return the requests for one prompt, after checking its arguments.

    Arguments come from rendered templates, so digits count as numbers and ``true`` / ``false`` as booleans where the
    model expects them.

    - ``num_images`` goes into the model's count field, within its limits. A model without such a field, or whose field
      accepts only 1, gets one request per image, at most :data:`MAX_IMAGES_PER_PROMPT`; a seed is incremented from
      request to request, because the same seed would pay for the same image again.
    - ``input_images`` goes into the model's field for input images, within its limits.
    - ``aspect_ratio`` becomes a size of exactly that ratio on models that have ``image_size`` or ``size`` instead.
    - URLs are requested explicitly, because the API's default has changed before. ``convert_base64_to_url=False``
      requests base64 on every model that supports it; the model's own field works, too.
    - Arguments for a model that is not in the catalogue are passed on almost unchecked.

    :param arguments: by name: ``model``, ``prompt``, ``num_images``, ``aspect_ratio``, ``convert_base64_to_url``,
        ``input_images`` and any field of the model; ``None`` leaves a field to the model
    :param can_store: whether images can be stored; without storage, base64 would be lost
    :param where: prefix of the field names in problems, such as ``prompt[3].``
    :param item_keys: names of the arguments that come from a prompt item, where one that is not a field may be metadata
    :raises InvalidArgumentsError: with every problem found
    """
    remaining = {str(name): value for name, value in arguments.items() if value is not None}
    model_id = remaining.pop("model", None)
    if not isinstance(model_id, str) or not model_id or model_id != model_id.strip():
        raise InvalidArgumentsError(
            [Problem(f"{where}model", show(model_id), "a model id without surrounding spaces is needed")]
        )
    checked = {"model": model_id, **{name: value for name, value in remaining.items() if name != "prompt"}}
    if broken := [
        Problem(where + name, show(text), reason)
        for name, value in checked.items()
        for text in (name, *_strings_in(value, depth=_MAX_DEPTH))
        if (reason := text_problem(text))
    ]:
        raise InvalidArgumentsError(broken)
    model = find_model(model_id)
    if model is None:
        return _build_unchecked(model_id, remaining, can_store=can_store, where=where)
    draft = _Draft(model_id, model, model.endpoint_for(remaining), where, item_keys)
    draft.take_prompt(remaining)
    count, is_split = draft.take_count(remaining)
    draft.take_ratio(remaining)
    draft.take_inputs(remaining)
    inline = draft.take_base64(remaining, can_store=can_store)
    draft.take_fields(remaining)
    draft.problems += _broken_rules(draft)
    if not draft.problems:
        draft.problems += _broken_input_rules(draft)
    if is_split:
        draft.check_last_seed(count)
    if draft.problems:
        raise InvalidArgumentsError(draft.problems)
    bodies = draft.split(count) if is_split else [draft.body]
    images = 1 if is_split else count
    return tuple(ImageRequest(draft.endpoint.path, body, images, inline) for body in bodies)


def _strings_in(value: Any, *, depth: int) -> Iterator[str]:
    """Yield every string in a JSON value, keys included, down to a depth."""
    if isinstance(value, str):
        yield value
    elif depth == 0:
        return
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield str(name)
            yield from _strings_in(each, depth=depth - 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings_in(each, depth=depth - 1)


class _Draft:
    """A request body under construction; each ``take_*`` method moves arguments from ``remaining`` into it."""

    def __init__(self, model_id: str, model: Model, endpoint: Endpoint, where: str, item_keys: Collection[str]) -> None:
        self.model_id = model_id  # as the author wrote it, and as sent
        self.model = model
        self.endpoint = endpoint
        self.where = where
        self.body: dict[str, Any] = {"model": model_id}
        self.problems: list[Problem] = []
        self._item_keys = item_keys
        self._missing = set(endpoint.required)

    def take_prompt(self, remaining: dict[str, Any]) -> None:
        prompt = remaining.pop("prompt", None)
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            if "prompt" in self._missing:
                self._missing.discard("prompt")
                self._add_problem("prompt", prompt, "non-empty text is needed")
        elif "prompt" not in self.endpoint.fields:
            self._add_problem("prompt", prompt, f"{self.model_id} takes no prompt and would ignore it; remove it")
        elif isinstance(prompt, str) and (reason := prompt_problem(prompt)):
            self._missing.discard("prompt")
            self._add_problem("prompt", prompt, reason)
        else:
            self._set_field("prompt", prompt)
            limit = self.endpoint.fields["prompt"].get("maxLength")
            if isinstance(prompt, str) and limit is not None and len(prompt) > limit:
                problem = self.problems.pop()
                inputs = flatten([remaining[name] for name in (INPUT_ARGUMENT, *INPUT_FIELDS) if name in remaining])
                advice = advise_longer_prompt(self.model, len(prompt), input_images=len(inputs))
                self.problems.append(replace(problem, allowed=f"{problem.allowed}; {advice}"))

    def take_count(self, remaining: dict[str, Any]) -> tuple[int, bool]:
        """Return the number of images requested, and whether each needs a request of its own."""
        field, most = self.endpoint.count_field, self.endpoint.max_images
        is_split = field is None or most == 1
        names = [name for name in COUNT_FIELDS if name in remaining and name in ("num_images", field)]
        if len(names) == 2:
            self._add_problem("n", remaining["n"], f"set either num_images or n for {self.model_id}, not both")
        value = 1
        for name in names:
            given = remaining.pop(name)
            limit = MAX_IMAGES_PER_PROMPT if is_split or most is None else most
            count = read_whole_number(given)
            if count is None or not 1 <= count <= limit:
                self.problems.append(problem_with(self.where + name, given, f"a whole number from 1 to {limit}"))
            else:
                value = count
        if names and field:
            self._set_field(field, 1 if is_split else value)
        return value, is_split

    def take_ratio(self, remaining: dict[str, Any]) -> None:
        """Translate ``aspect_ratio`` into the size field of a model without an ``aspect_ratio`` field."""
        field = self.endpoint.size_field
        if field in (None, "aspect_ratio") or "aspect_ratio" not in remaining:
            return
        given, schema = remaining.pop("aspect_ratio"), self.endpoint.fields[field]
        if field in remaining:
            self._add_problem("aspect_ratio", given, f"set either aspect_ratio or {field}, not both")
            return
        ratio = read_ratio(given)
        size = size_for(ratio, schema) if ratio else None
        if size is not None:
            self.body[field] = size
            return
        offered = ratios_offered(schema)
        allowed = f"{self.model_id} has sizes for {', '.join(offered)}; or set " if offered else "set "
        self._add_problem("aspect_ratio", given, f"{allowed}{field}: {describe(schema)}")

    def take_inputs(self, remaining: dict[str, Any]) -> None:
        """Put ``input_images`` into the model's first input field that accepts that many."""
        if INPUT_ARGUMENT not in remaining:
            return
        given = remaining.pop(INPUT_ARGUMENT)
        images, fields = flatten(given), self.endpoint.input_fields
        if not fields:
            self._add_problem(INPUT_ARGUMENT, given, f"{self.model_id} takes no input images and would ignore them")
            return
        if taken := [field for field in fields if field in remaining]:
            self._missing.discard(taken[0])
            self._add_problem(INPUT_ARGUMENT, given, f"set either {INPUT_ARGUMENT} or {taken[0]}, not both")
            return
        self._missing.difference_update(fields)
        if not images:
            self._add_problem(INPUT_ARGUMENT, given, "at least one image is needed; omit the argument for none")
            return
        enough = [
            field
            for field in fields
            if (most := max_images_of(self.endpoint.fields[field])) is None or len(images) <= most
        ]
        if not enough:
            most = self.endpoint.max_inputs
            limit = "one image" if most == 1 else f"at most {most} images"
            self._add_problem(INPUT_ARGUMENT, given, f"{self.model_id} takes {limit}; {len(images)} were given")
            return
        schema = self.endpoint.fields[enough[0]]
        takes_one = any(choice.get("type") != "array" for choice in schema.get("anyOf", (schema,)))
        self._set_field(enough[0], images[0] if takes_one and len(images) == 1 else images, called=INPUT_ARGUMENT)

    def take_base64(self, remaining: dict[str, Any], *, can_store: bool) -> bool:
        """Set the model's field that chooses between URLs and base64; return whether base64 was chosen."""
        field = self.endpoint.base64_field
        ours = "convert_base64_to_url"
        named = ours if ours in remaining else field
        if ours in remaining and field != ours:
            given = remaining.pop(ours)
            wants_urls = coerce({"type": "boolean"}, given)
            if not isinstance(wants_urls, bool):
                self._add_problem(ours, given, "true or false is allowed")
            elif field is None:
                if not wants_urls:
                    self._add_problem(ours, given, f"{self.model_id} always returns URLs; remove it")
            elif field in remaining:
                self._add_problem(ours, given, f"set either {ours} or {field}, not both")
            else:
                remaining[field] = _base64_setting(field, urls=wants_urls)
        if field is None or named is None:
            return False
        self._set_field(field, remaining.pop(field, _base64_setting(field, urls=True)))
        inline = bool(self.body[field] == _base64_setting(field, urls=False))
        if inline and not can_store:
            value = self.body[field] if named == field else False
            self._add_problem(named, value, "base64 would be lost without output_path: set it, or request URLs")
        return inline

    def take_fields(self, remaining: Mapping[str, Any]) -> None:
        for name, value in remaining.items():
            if name in self.endpoint.fields:
                self._set_field(name, value)
            else:
                may_be_metadata = name in self._item_keys
                self._add_problem(
                    name, value, _why_unknown(name, self.model_id, self.endpoint, may_be_metadata=may_be_metadata)
                )
        for name in sorted(self._missing):
            self._add_problem(name, None, f"is required by {self.model_id}: {describe(self.endpoint.fields[name])}")

    def check_last_seed(self, count: int) -> None:
        highest = self.endpoint.fields.get("seed", {}).get("maximum")
        seed = self.body.get("seed")
        if isinstance(seed, int) and highest is not None and highest - count + 1 < seed <= highest:
            allowed = f"with {count} images, each with its own seed, a whole number of at most {highest - count + 1}"
            self._add_problem("seed", seed, f"{allowed} is allowed")

    def split(self, count: int) -> Iterator[dict[str, Any]]:
        for index in range(count):
            yield {**self.body, "seed": self.body["seed"] + index} if "seed" in self.body else dict(self.body)

    def _set_field(self, name: str, value: Any, *, called: str | None = None) -> None:
        """
        Check a field's value and add it to the body.

        :param called: the argument's name in problems, if it differs from the field's
        """
        self._missing.discard(name)
        value, problems = check_field(self.endpoint, name, value, where=self.where)
        prefix = self.where + name
        self.problems += [
            replace(problem, field=self.where + called + problem.field.removeprefix(prefix)) if called else problem
            for problem in problems
        ]
        self.body[name] = value

    def _add_problem(self, name: str, value: Any, allowed: str) -> None:
        self.problems.append(Problem(self.where + name, show(value), allowed))


def _base64_setting(field: str, *, urls: bool) -> Any:
    """Return the value with which a field requests URLs or base64."""
    if field == "response_format":
        return "url" if urls else "b64_json"
    return urls if field == "convert_base64_to_url" else not urls  # ``sync_mode`` means base64


def _why_unknown(name: str, model_id: str, endpoint: Endpoint, *, may_be_metadata: bool) -> str:
    """Return a message that the model has no such field, with what was probably meant."""
    text = f"`{name}` is not a field of {model_id}, which would ignore it"
    fields = endpoint.fields
    groups = (
        ("size", {*SIZE_FIELDS, "width", "height", "dimensions"}, endpoint.size_field),
        ("count", {*COUNT_FIELDS, "num_outputs", "number_of_images", "sample_count", "batch_size"}, "num_images"),
        ("image", {*IMAGE_FIELDS, "images", "input_image", "image_prompt"}, next(iter(endpoint.image_fields), None)),
        ("URL or base64", set(BASE64_FIELDS), endpoint.base64_field),
    )
    for label, names, own in groups:
        if name in names and own:
            values = f" ({describe(fields[own])})" if own in fields else ""
            return f"{text}; its {label} field is `{own}`{values}"
    from difflib import get_close_matches  # imported here because only this error needs it

    near = get_close_matches(name, fields, n=3, cutoff=0.6)
    if near:
        text = f"{text}; did you mean {' or '.join(f'`{field}`' for field in near)}?"
        return f"{text} If it is metadata, name it in metadata_columns" if may_be_metadata else text
    advice = "if it is metadata, name it in metadata_columns, else remove it" if may_be_metadata else "remove it"
    return f"{text}; {advice}, its fields are {', '.join(sorted(fields))}"


def _broken_rules(draft: _Draft) -> Iterator[Problem]:
    """Yield violations of rules across fields, which the schemas of single fields cannot express."""
    body, fields, where = draft.body, draft.endpoint.fields, draft.where

    def value_of(name: str) -> Any:
        return body.get(name, fields.get(name, {}).get("default"))

    # Google rejects it (GoogleCloudPlatform/generative-ai pull request 780), and this API serves the same models.
    if "seed" in body and body.get("add_watermark") is True:
        yield Problem(
            f"{where}seed",
            show(body["seed"]),
            "not allowed with add_watermark=True: the service rejects both together",
        )
    # docs, gpt-image-1 page, 2026-04-22
    if body.get("background") == "transparent" and value_of("output_format") not in ("png", "webp", None):
        yield Problem(f"{where}background", "transparent", "requires output_format png or webp")
    # docs, switchx-image-to-image page, 2026-06-29
    if body.get("alpha_mode") in ("custom", "select") and "alpha_url" in fields and "alpha_url" not in body:
        yield Problem(f"{where}alpha_url", None, f"is required with alpha_mode={body['alpha_mode']}")
    if "reference_image_url" in fields and not {"prompt", "reference_image_url"} & body.keys():
        yield Problem(f"{where}prompt", None, "a prompt or a reference_image_url is required")
    # docs, uni-1 page: image_edit changes a source image
    if body.get("type") == "image_edit" and "image_url" in fields and not {"image_url", "image_urls"} & body.keys():
        yield Problem(f"{where}image_url", None, "is required with type=image_edit")


def _broken_input_rules(draft: _Draft) -> Iterator[Problem]:
    """Yield problems with stored input images that conversion cannot fix when they are sent."""
    files = {
        name: [part for part in flatten(value) if isinstance(part, ImageFile)] for name, value in draft.body.items()
    }
    size = sum(image.bytes for images in files.values() for image in images)
    if size > MAX_INLINE_BYTES and draft.endpoint.path == GENERATIONS_PATH:
        names = ", ".join(name for name, images in files.items() if images)
        allowed = f"at most {MAX_INLINE_BYTES:,} bytes of stored images fit in one request, these have {size:,}"
        yield Problem(draft.where + INPUT_ARGUMENT, names, f"{allowed}; pass URLs instead")
    for mask in files.get("mask", ()):
        most = limits_for(draft.model.id, draft.endpoint.path, "mask").max_bytes
        if most is not None and mask.bytes > most:
            yield Problem(
                f"{draft.where}mask", mask.address, f"at most {most:,} bytes are allowed, it has {mask.bytes:,}"
            )
        first = next(iter(flatten(draft.body.get("image"))), None)
        if isinstance(first, ImageFile) and (mask.width, mask.height) != (first.width, first.height):
            allowed = (
                f"a mask must have the size of the first image, {first.width}x{first.height}; "
                f"this one is {mask.width}x{mask.height}"
            )
            yield Problem(f"{draft.where}mask", mask.address, allowed)


def _build_unchecked(
    model_id: str, remaining: dict[str, Any], *, can_store: bool, where: str
) -> tuple[ImageRequest, ...]:
    """
    Return the request for a model that is not in the catalogue, with its arguments as given.

    Checks only what applies to every model: prompt, count, base64 without storage, and values JSON cannot represent.
    """
    problems: list[Problem] = []
    prompt = remaining.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        problems.append(problem_with(f"{where}prompt", prompt, "text"))
    elif prompt is not None and (reason := prompt_problem(prompt)):
        problems.append(Problem(f"{where}prompt", show(prompt), reason))
    count = 1
    for name in COUNT_FIELDS:
        if name in remaining:
            given = read_whole_number(remaining[name])
            if given is None or not 1 <= given <= MAX_IMAGES_PER_PROMPT:
                allowed = f"a whole number from 1 to {MAX_IMAGES_PER_PROMPT}"
                problems.append(problem_with(where + name, remaining[name], allowed))
            else:
                remaining[name], count = given, max(count, given)
    inline = any(
        field in remaining and remaining[field] == _base64_setting(field, urls=False) for field in BASE64_FIELDS
    )
    if inline and not can_store:
        problems.append(Problem(f"{where}output_path", None, "is required: base64 would be lost without it"))
    if INPUT_ARGUMENT in remaining:
        allowed = f"{model_id} is not in the catalogue: pass its images in its own field, through parameters"
        problems.append(Problem(where + INPUT_ARGUMENT, show(remaining.pop(INPUT_ARGUMENT)), allowed))
    remaining |= {name: plain_data_uris(remaining[name]) for name in IMAGE_FIELDS if name in remaining}
    for name, value in remaining.items():
        try:
            json.dumps(value, allow_nan=False, default=_json_placeholder)
        except (TypeError, ValueError, RecursionError):
            problems.append(problem_with(where + name, value, "a value that JSON can represent"))
    if problems:
        raise InvalidArgumentsError(problems)
    return (ImageRequest(GENERATIONS_PATH, {"model": model_id, **remaining}, count, inline),)


def _json_placeholder(value: Any) -> str:
    """Return a placeholder for a stored image in the JSON check; its bytes replace it when it is sent."""
    if isinstance(value, ImageFile):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
