"""Turn rendered arguments into requests: checked, priced and fingerprinted before a cent is spent. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.api.fields import COUNT_FIELDS, read_whole_number
from airflow_provider_imagen.catalogue.prompt_text import why_broken
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from decimal import Decimal

    from airflow_provider_imagen.catalogue.request_builder import ImageRequest

_OWN_KEYS = frozenset({"name"})
"""Keys of a prompt mapping that are ours and are not sent."""

_PLACE = r"^prompt\[\d+\]\.?"


class Unit(Struct, frozen=True):
    """
    One paid POST.

    :param key: names it in the journal: a fingerprint of the request, and which one it is among equal ones
    :param request: what is sent
    :param expected_usd: its price as known beforehand
    """

    key: str
    request: ImageRequest
    expected_usd: Decimal | None

    @property
    def model(self) -> str:
        """Model id the request names."""
        return str(self.request.body["model"])


class Slot(Struct, frozen=True):
    """
    A part of an item that one worker sees through: some of its pictures, from the first model that makes them.

    :param item: index of the item in the list of prompts
    :param first_image: index of the slot's first picture within the item
    :param images: how many pictures it is for
    :param choices: the POSTs to make with the model asked for, then with each fallback model
    """

    item: int
    first_image: int
    images: int
    choices: tuple[tuple[Unit, ...], ...]


class Item(Struct, frozen=True):
    """
    One prompt with its arguments.

    :param index: its place in the list of prompts
    :param name: the name the author gave it, for file names
    :param prompt: the text; empty for models that take none
    :param arguments: everything asked for, by the names the author used
    :param images: pictures asked for
    :param is_superseded: an earlier attempt paid for it, and nobody asks for it any more
    """

    index: int
    name: str | None
    prompt: str
    arguments: Mapping[str, Any]
    images: int
    is_superseded: bool = False


class Plan(Struct, frozen=True):
    """Everything a task is going to buy."""

    items: tuple[Item, ...]
    slots: tuple[Slot, ...]

    @property
    def images(self) -> int:
        """Pictures asked for in all."""
        return sum(item.images for item in self.items)

    @property
    def units(self) -> Iterator[Unit]:
        """Every POST that may be made, those to fallback models included."""
        for slot in self.slots:
            for units in slot.choices:
                yield from units


def place_of(place: int, *, images: int, first_image: int, prompt_images: int) -> int:
    """
    Return the index of an image among the images of its prompt. Extra ones, more than asked for, come after all others.

    :param place: its place in the response, from 0
    :param images: images the request asked for
    :param first_image: index of the request's first image
    :param prompt_images: images asked for with the prompt in all
    """
    beyond, place = divmod(place, images)
    return first_image + place + beyond * prompt_images


def name_from(value: Any) -> Any:
    """Turn a whole number, as tables have in their columns of keys, into a name; leave all else."""
    number = None if isinstance(value, str) else read_whole_number(value)
    return value if number is None else str(number)


def _as_given(
    entries: Sequence[tuple[dict[str, Any], str]],
    problems: list[Problem],  # noqa: ARG001 - the signature of what resolves
) -> list[dict[str, Any]]:
    """Leave arguments as they are."""
    return [asked for asked, _ in entries]


def make_plan(
    *,
    prompt: Any,
    arguments: Mapping[str, Any],
    fallback_models: Sequence[str] = (),
    can_store: bool,
    price: Callable[[ImageRequest], Decimal | None] = lambda _: None,
    resolve: Callable[[Sequence[tuple[dict[str, Any], str]], list[Problem]], list[dict[str, Any]]] = _as_given,
) -> Plan:
    """
    Check everything and lay out the requests.

    :param prompt: rendered: a string, a mapping, a list of either, or ``None`` for models without a prompt
    :param arguments: rendered, by API field name, ``model`` among them; ``None`` leaves a field to the model.
        An item's own mapping overrides them.
    :param fallback_models: models to try, in order, when the one asked for is withdrawn
    :param can_store: whether pictures can be stored, which base64 answers need
    :param price: expected price of a request, in USD
    :param resolve: finds out which pictures the arguments of each item name, and adds what is wrong to the problems
        (:meth:`~airflow_provider_imagen.run.input_reader.InputReader.resolve`)
    :raises InvalidArgumentsError: with every problem of every item
    """
    problems: list[Problem] = []
    items: list[Item] = []
    drafts: list[list[list[tuple[ImageRequest, ...]]]] = []  # per item, per slot, per model: its requests
    entries = _entries(prompt, problems)
    merged = [
        ({**arguments, **{name: value for name, value in entry.items() if name not in _OWN_KEYS}}, where)
        for entry, where in entries
    ]
    resolved = resolve(merged, problems)
    for index, ((entry, where), asked) in enumerate(zip(entries, resolved, strict=True)):
        draft: list[list[tuple[ImageRequest, ...]]] = []
        try:
            for request in build_requests(asked, can_store=can_store, where=where):
                share = _share(asked, request)
                draft.append([(request,)])
                for model in fallback_models:
                    draft[-1].append(build_requests({**share, "model": model}, can_store=can_store, where=where))
        except InvalidArgumentsError as error:
            problems += error.problems
        name = name_from(entry.get("name"))
        if name is not None and not (isinstance(name, str) and name.strip()):
            problems.append(Problem(f"{where}name", name, "text that is not empty, or a whole number, is allowed"))
        elif name is not None and (reason := why_broken(name)):
            problems.append(Problem(f"{where}name", name, reason))
        if problems:
            continue
        images = sum(choices[0][0].expected_images for choices in draft)
        body = draft[0][0][0].body
        typed = {argument: body.get(argument, value) for argument, value in asked.items()}  # "7" from a template is 7
        items.append(Item(index, name, str(asked.get("prompt") or ""), typed, images))
        drafts.append(draft)
    if problems:
        raise InvalidArgumentsError(_without_repeats(problems))
    return Plan(items=tuple(items), slots=tuple(_lay_out(items, drafts, price)))


def _share(asked: Mapping[str, Any], request: ImageRequest) -> dict[str, Any]:
    """Give the arguments for one request of several, in the words that fit every model."""
    rest = {name: value for name, value in asked.items() if name not in COUNT_FIELDS}
    if len(rest) < len(asked):
        rest["num_images"] = request.expected_images
    return {**rest, "seed": request.body.get("seed", asked.get("seed"))}


def _entries(prompt: Any, problems: list[Problem]) -> list[tuple[Mapping[str, Any], str]]:
    """Bring every way to give prompts into one: mappings, each with the prefix its problems are named with."""
    allowed = 'text, a mapping such as {"prompt": …}, or a list of these is allowed'
    if prompt is None or isinstance(prompt, str):
        return [({"prompt": prompt}, "")]
    if isinstance(prompt, Mapping):
        return [(prompt, "")]
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        problems.append(Problem("prompt", prompt, allowed))
        return []
    entries: list[tuple[Mapping[str, Any], str]] = []
    for index, entry in enumerate(prompt):
        where = f"prompt[{index}]."
        if isinstance(entry, Mapping):
            entries.append((entry, where))
        elif isinstance(entry, str):
            entries.append(({"prompt": entry}, where))
        else:
            problems.append(Problem(f"prompt[{index}]", entry, 'text or a mapping such as {"prompt": …} is allowed'))
    return entries


def _lay_out(
    items: Sequence[Item],
    drafts: Sequence[Sequence[Sequence[tuple[ImageRequest, ...]]]],
    price: Callable[[ImageRequest], Decimal | None],
) -> list[Slot]:
    """Number the slots' pictures within their items, and give every request its key and price."""
    seen: Counter[str] = Counter()

    def unit(request: ImageRequest) -> Unit:
        name = fingerprint(request)
        seen[name] += 1
        return Unit(f"{name}#{seen[name]}", request, price(request))

    # The models asked for are numbered first: naming a fallback later must not rename what was already bought.
    asked = [[tuple(map(unit, choices[0])) for choices in draft] for draft in drafts]
    slots: list[Slot] = []
    for item, draft, firsts in zip(items, drafts, asked, strict=True):
        first_image = 0
        for choices, first in zip(draft, firsts, strict=True):
            units = (first, *(tuple(map(unit, requests)) for requests in choices[1:]))
            slots.append(Slot(item.index, first_image, choices[0][0].expected_images, units))
            first_image += slots[-1].images
    return slots


def fingerprint(request: ImageRequest) -> str:
    """
    Name a request by everything that is sent: the same request has the same name in every try.

    A stored picture counts by its digest (its text), so one that has changed makes another request.
    """
    text = json.dumps([request.path, request.body], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _without_repeats(problems: Sequence[Problem]) -> list[Problem]:
    """Keep one of several equal problems, such as a wrong argument shared by all prompts."""
    seen: set[str] = set()
    kept: list[Problem] = []
    for problem in problems:
        text = re.sub(_PLACE, "", str(problem))
        if text not in seen:
            seen.add(text)
            kept.append(problem)
    return kept
