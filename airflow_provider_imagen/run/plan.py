"""Turn rendered arguments into requests, validated, priced and fingerprinted before any money is spent. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_imagen.api.fields import COUNT_FIELDS, IMAGE_FIELDS, read_whole_number
from airflow_provider_imagen.catalogue.prompt_text import text_problem
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem
from airflow_provider_imagen.journal.records import Target
from airflow_provider_imagen.run.item_metadata import ALT_TEXT, take_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from airflow_provider_imagen.catalogue.pricing import PriceList, QuoteSource
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.image_record import Metadata

_OWN_KEYS = frozenset({"name"})
"""Keys of a prompt mapping that are ours and never sent to the API."""

_MAX_LABEL = 60
_PLACE = r"^prompt\[\d+\]\.?"


class PlannedRequest(Struct, frozen=True):
    """
    One paid POST.

    :param key: its journal key: a fingerprint of the request, and a counter that tells identical requests apart
    :param request: what is sent
    :param target: the images it is for
    :param quoted_usd: price known in advance, in USD; ``None`` when unknown
    """

    key: str
    request: ImageRequest
    target: Target
    quoted_usd: Decimal | None

    @property
    def model(self) -> str:
        """Model id in the request."""
        return str(self.request.body["model"])

    @property
    def fingerprint(self) -> str:
        """Hash of what is sent (:func:`fingerprint`)."""
        return fingerprint_in(self.key)


class ImageSlot(Struct, frozen=True):
    """
    Some of an item's images, obtained by one worker from the first model that is available.

    :param item_index: index of the item in the list of prompts
    :param images: number of images
    :param alternatives: the requests to send, by model: first the requested one, then each fallback model
    """

    item_index: int
    images: int
    alternatives: tuple[tuple[PlannedRequest, ...], ...]

    def first_alternative(self, retired: Container[str]) -> tuple[PlannedRequest, ...]:
        """Return the requests to the first model that is not retired; those to the requested one if all are."""
        available = (each for each in self.alternatives if all(planned.model not in retired for planned in each))
        return next(available, self.alternatives[0])


class PromptItem(Struct, frozen=True):
    """
    One prompt with its arguments.

    :param index: position in the list of prompts
    :param name: name given by the author, for file names
    :param prompt: the text; empty for models without a prompt
    :param arguments: everything requested, under the names the author used
    :param images: number of images requested
    :param metadata: values by name that are recorded with its images and never sent; ``None`` if the task has none
    :param is_superseded: paid for by a previous attempt and no longer requested
    :param recorded_arguments: ``arguments`` of its images' records
    """

    index: int
    name: str | None
    prompt: str
    arguments: Mapping[str, Any]
    images: int
    metadata: Metadata | None = None
    is_superseded: bool = False
    recorded_arguments: str | None = None

    @property
    def alt_text(self) -> str | None:
        """Describes the image for people who cannot see it; embedded in the file."""
        return (self.metadata or {}).get(ALT_TEXT)

    @property
    def label(self) -> str:
        """Its name, else the start of its prompt: one line of printable text, for logs and errors."""
        text = "".join(character if character.isprintable() else " " for character in self.name or self.prompt)
        text = " ".join(text.split())
        return text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…"


class Plan(Struct, frozen=True):
    """
    All requests a task is going to make.

    :param beyond_limit: the items that ``limit`` leaves out; they only count for the names of files
    """

    items: tuple[PromptItem, ...]
    slots: tuple[ImageSlot, ...]
    beyond_limit: tuple[PromptItem, ...] = ()

    @property
    def images(self) -> int:
        """Total number of images requested, counted at each call."""
        return sum(item.images for item in self.items)

    @property
    def requests(self) -> Iterator[PlannedRequest]:
        """Every request that may be sent, including those to fallback models."""
        for slot in self.slots:
            for alternative in slot.alternatives:
                yield from alternative


class PlanQuote(Struct, frozen=True):
    """
    Expected cost of a plan's images.

    :param usd: total in USD; ``None`` when any price is unknown
    :param source: ``live`` when the API lists every price, ``last known`` when the catalogue had to fill in,
        ``unknown`` when a price is missing
    :param images: number of images
    :param requests: number of paid requests they take
    """

    usd: Decimal | None
    source: QuoteSource
    images: int
    requests: int


def name_from(value: Any) -> Any:
    """Return a whole number, as from a table's key column, as a name; return anything else unchanged."""
    number = None if isinstance(value, str) else read_whole_number(value)
    return value if number is None else str(number)


def _as_given(
    entries: Sequence[tuple[dict[str, Any], str]],
    problems: list[Problem],  # noqa: ARG001 - same signature as InputReader.resolve
) -> list[dict[str, Any]]:
    """Return the arguments unchanged."""
    return [requested for requested, _ in entries]


def make_plan(
    *,
    prompt: Any,
    arguments: Mapping[str, Any],
    metadata_columns: Sequence[str] = (),
    fallback_models: Sequence[str] = (),
    can_store: bool,
    limit: int | None = None,
    price: Callable[[ImageRequest], Decimal | None] = lambda _: None,
    resolve: Callable[[Sequence[tuple[dict[str, Any], str]], list[Problem]], list[dict[str, Any]]] = _as_given,
    record: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
) -> Plan:
    """
    Return the requests for the prompts, after validating everything.

    :param prompt: rendered: a string, a mapping, a list of either, or ``None`` for models without a prompt
    :param arguments: rendered, by API field name, including ``model``; ``None`` leaves a field to the model. An item's
        own mapping overrides them.
    :param metadata_columns: keys of the items' mappings that are metadata, besides the mapping under ``metadata``
    :param fallback_models: models to use instead, in order, when the requested one is retired
    :param can_store: whether images can be stored, which base64 responses require
    :param limit: number of prompts to request images for, from 1; ``None`` for all. The others are only validated
    :param price: returns the expected price of a request, in USD
    :param resolve: finds the images that each item's arguments refer to, and adds what is wrong to the problems
        (:meth:`~airflow_provider_imagen.run.input_reader.InputReader.resolve`)
    :param record: returns what the records of an item's images say about its arguments
        (:func:`~airflow_provider_imagen.run.recorded_arguments.record_arguments`)
    :raises InvalidArgumentsError: with every problem of every item
    """
    problems: list[Problem] = []
    items: list[PromptItem] = []
    drafts: list[list[list[tuple[ImageRequest, ...]]]] = []  # requests by item, slot and model
    models = (arguments.get("model"), *fallback_models)
    entries, metadata = take_metadata(
        _entries(prompt, problems), columns=metadata_columns, models=models, problems=problems
    )
    merged = [
        ({**arguments, **{name: value for name, value in entry.items() if name not in _OWN_KEYS}}, where)
        for entry, where in entries
    ]
    resolved = resolve(merged, problems)
    for index, ((entry, where), (given, _), requested) in enumerate(zip(entries, merged, resolved, strict=True)):
        draft: list[list[tuple[ImageRequest, ...]]] = []
        try:
            for request in build_requests(requested, can_store=can_store, where=where, item_keys=entry):
                share = _share(requested, request)
                draft.append([(request,)])
                for model in fallback_models:
                    draft[-1].append(
                        build_requests({**share, "model": model}, can_store=can_store, where=where, item_keys=entry)
                    )
        except InvalidArgumentsError as error:
            problems += error.problems
        name = name_from(entry.get("name"))
        if name is not None and not (isinstance(name, str) and name.strip()):
            problems.append(Problem(f"{where}name", name, "text that is not empty, or a whole number, is allowed"))
        elif name is not None and (reason := text_problem(name)):
            problems.append(Problem(f"{where}name", name, reason))
        if problems:
            continue
        images = sum(alternatives[0][0].expected_images for alternatives in draft)
        body = draft[0][0][0].body
        typed = {
            argument: body.get(argument, value) for argument, value in requested.items()
        }  # a template's "7" becomes 7
        items.append(
            PromptItem(
                index=index,
                name=name,
                prompt=str(requested.get("prompt") or ""),
                arguments=typed,
                images=images,
                metadata=metadata[index],
                recorded_arguments=record(given),
            )
        )
        drafts.append(draft)
    if problems:
        raise InvalidArgumentsError(_without_repeats(problems))
    slots = _lay_out(items, drafts, price)  # of all items, so that a limit does not change any key
    count = len(items) if limit is None else limit
    return Plan(
        items=tuple(items[:count]),
        slots=tuple(slot for slot in slots if slot.item_index < count),
        beyond_limit=tuple(items[count:]),
    )


def _share(requested: Mapping[str, Any], request: ImageRequest) -> dict[str, Any]:
    """Return the arguments of one request out of several, using only fields that every model understands."""
    rest = {name: value for name, value in requested.items() if name not in COUNT_FIELDS}
    if len(rest) < len(requested):
        rest["num_images"] = request.expected_images
    return {**rest, "seed": request.body.get("seed", requested.get("seed"))}


def _entries(prompt: Any, problems: list[Problem]) -> list[tuple[Mapping[str, Any], str]]:
    """Return the prompts, however given, as mappings, each with the prefix for its field names in problems."""
    allowed = 'text, a mapping such as {"prompt": …}, or a list of these is allowed'
    if prompt is None or isinstance(prompt, str):
        return [({"prompt": prompt}, "")]
    if isinstance(prompt, Mapping):
        return [(_without_surplus(prompt, "prompt", problems), "")]
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        problems.append(Problem("prompt", prompt, allowed))
        return []
    entries: list[tuple[Mapping[str, Any], str]] = []
    for index, entry in enumerate(prompt):
        where = f"prompt[{index}]."
        if isinstance(entry, Mapping):
            entries.append((_without_surplus(entry, f"prompt[{index}]", problems), where))
        elif isinstance(entry, str):
            entries.append(({"prompt": entry}, where))
        else:
            problems.append(Problem(f"prompt[{index}]", entry, 'text or a mapping such as {"prompt": …} is allowed'))
    return entries


def _without_surplus(item: Mapping[str, Any], field: str, problems: list[Problem]) -> Mapping[Any, Any]:
    """Return an item without the cells that ``csv.DictReader`` lists under ``None`` if a row has too many of them."""
    surplus = item.get(None)  # type: ignore[call-overload]
    if surplus is None:
        return item
    problems.append(Problem(field, surplus, "the row has more cells than the table has columns; remove these"))
    return {name: value for name, value in item.items() if name is not None}


def _lay_out(
    items: Sequence[PromptItem],
    drafts: Sequence[Sequence[Sequence[tuple[ImageRequest, ...]]]],
    price: Callable[[ImageRequest], Decimal | None],
) -> list[ImageSlot]:
    """Return the slots, with a key, a target and a price for every request."""
    seen: Counter[str] = Counter()

    def plan_requests(
        item: PromptItem, first_image: int, requests: tuple[ImageRequest, ...]
    ) -> tuple[PlannedRequest, ...]:
        planned = []
        for request in requests:
            name = fingerprint(request)
            seen[name] += 1
            target = Target(
                prompt_index=item.index,
                image_index=first_image,
                images=request.expected_images,
                prompt_images=item.images,
                prompt=item.prompt,
                name=item.name,
                metadata=item.metadata,
                has_input_images=any(name in IMAGE_FIELDS for name in request.body),
            )
            planned.append(PlannedRequest(f"{name}#{seen[name]}", request, target, price(request)))
            first_image += request.expected_images
        return tuple(planned)

    places = []  # item, index of the slot's first image, and requests by model
    for item, draft in zip(items, drafts, strict=True):
        first_image = 0
        for alternatives in draft:
            places.append((item, first_image, alternatives))
            first_image += alternatives[0][0].expected_images
    # Number the requested models first: adding a fallback later must not change the keys of paid requests.
    firsts = [plan_requests(item, image, alternatives[0]) for item, image, alternatives in places]
    return [
        ImageSlot(
            item_index=item.index,
            images=alternatives[0][0].expected_images,
            alternatives=(first, *(plan_requests(item, image, requests) for requests in alternatives[1:])),
        )
        for (item, image, alternatives), first in zip(places, firsts, strict=True)
    ]


def fingerprint(request: ImageRequest) -> str:
    """
    Return a hash of everything that is sent; the same request has the same hash in every attempt.

    A stored input image is represented by its digest, so a changed file makes a different request.
    """
    text = json.dumps([request.path, request.body], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def fingerprint_in(key: str) -> str:
    """Return the fingerprint of the request that a journal key identifies."""
    return key.partition("#")[0]


def _without_repeats(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems without duplicates, such as a wrong argument shared by all prompts."""
    seen: set[str] = set()
    kept: list[Problem] = []
    for problem in problems:
        text = re.sub(_PLACE, "", str(problem))
        if text not in seen:
            seen.add(text)
            kept.append(problem)
    return kept


def quote_plan(
    *,
    prompt: Any,
    arguments: Mapping[str, Any],
    metadata_columns: Sequence[str] = (),
    prices: PriceList,
    resolve: Callable[[Sequence[tuple[dict[str, Any], str]], list[Problem]], list[dict[str, Any]]],
) -> PlanQuote:
    """
    Return the expected cost of everything requested, after validating it. Sends nothing.

    :param prompt: as in :func:`make_plan`
    :param arguments: by API field name, including ``model``
    :param metadata_columns: as in :func:`make_plan`
    :param prices: live prices; the last known ones apply where it has none
    :param resolve: as in :func:`make_plan`
    :raises InvalidArgumentsError: with every problem of every item
    """
    plan = make_plan(
        prompt=prompt, arguments=arguments, metadata_columns=metadata_columns, can_store=True, resolve=resolve
    )
    return quote_requests(plan, prices)


def quote_requests(plan: Plan, prices: PriceList, *, retired: Container[str] = ()) -> PlanQuote:
    """
    Return the expected cost of a plan.

    :param prices: live prices; the last known ones apply where it has none
    :param retired: models whose requests are replaced by those to the first fallback model that is not one of them
    """
    requests = [planned for slot in plan.slots for planned in slot.first_alternative(retired)]
    quotes = [(prices.quote(planned.request), planned.target.images) for planned in requests]
    return add_quotes(PlanQuote(quote.usd, quote.source, images, requests=1) for quote, images in quotes)


def add_quotes(quotes: Iterable[PlanQuote]) -> PlanQuote:
    """Return the sum of quotes; without any, it is 0 at live prices."""
    added = list(quotes)
    known = [quote.usd for quote in added if quote.usd is not None]
    sources = {quote.source for quote in added}
    source: QuoteSource = "live"
    for worse in ("last known", "unknown"):
        if worse in sources:
            source = worse
    return PlanQuote(
        usd=sum(known, Decimal(0)) if len(known) == len(added) else None,
        source=source,
        images=sum(quote.images for quote in added),
        requests=sum(quote.requests for quote in added),
    )
