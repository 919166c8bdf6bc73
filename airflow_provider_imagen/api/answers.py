"""
Read what the API answers to a generation: pictures, cost and ids, from every shape in use.

The shapes (docs, image model pages, 2025-02 to 2026-08): ``data[]``, ``images[]``, both with the same
pictures, OpenAI's ``created`` + ``data[]``, and ``output.choices[]`` of 2024. A picture is a link, a
``data:`` URI, or base64 text under one of four names. Pure functions on plain data.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

from airflow_provider_imagen.api.money import CostSource, read_cost
from airflow_provider_imagen.api.secrets import scrub
from airflow_provider_imagen.exceptions import InvalidRequestError, LostAnswerError, UnreadableResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from decimal import Decimal

_BASE64_NAMES = ("b64_json", "base64", "image_base64", "b64")
_LINK_NAMES = ("url", "image_url", "image")


@dataclass(frozen=True)
class AnsweredPicture:
    """
    One picture as it was answered; either ``url`` or ``data`` is set, or ``broken`` says why neither is.

    :param url: http(s) link to the picture
    :param data: the picture itself, decoded from base64
    :param prompt: the prompt as the model rewrote it, when it says so
    :param seed: the seed the model used, when it says so
    :param withheld: the model marks this picture as filtered (``has_nsfw_concepts``, ``content_violation``)
    :param broken: why the picture cannot be read
    """

    url: str | None = None
    data: bytes | None = None
    prompt: str | None = None
    seed: int | None = None
    withheld: bool = False
    broken: str | None = None


@dataclass(frozen=True)
class Generation:
    """
    What one paid request brought.

    :param pictures: in the order answered; may be fewer than asked for, or none
    :param usd: what was charged, in USD; ``None`` when the answer does not say
    :param usd_source: where ``usd`` stood
    :param inference_id: the API's id of the paid work
    :param client_request_id: the id we sent
    :param model: the model that answered, by the name it was asked under
    """

    pictures: tuple[AnsweredPicture, ...]
    usd: Decimal | None
    usd_source: CostSource | None
    inference_id: str | None
    client_request_id: str | None
    model: str | None

    @property
    def urls(self) -> list[str]:
        """Links of the pictures that have one and were not filtered."""
        return [picture.url for picture in self.pictures if picture.url and not picture.withheld]


def read_generation(
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    client_request_id: str | None = None,
    model: str | None = None,
) -> Generation:
    """
    Read the body of a 2xx answer.

    :raises LostAnswerError: the body is cut off or a gateway's page; the request may have been billed
    :raises InvalidRequestError: the body is an error although the status says success
    :raises UnreadableResponseError: JSON of no known form
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    inference_id = by_name.get("x-inference-id")
    facts: dict[str, Any] = {
        "status": status,
        "inference_id": inference_id,
        "client_request_id": client_request_id,
        "model": model,
    }
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise LostAnswerError(
            f"The API answered {status} with a body that is not whole JSON "
            f"({len(body)} bytes, {_describe(body)}); the request may have been billed.",
            **facts,
        ) from None
    if not isinstance(answer, dict):
        raise UnreadableResponseError(
            f"The API answered {status} with a JSON {type(answer).__name__} where an object was expected.", **facts
        )
    usd, usd_source = read_cost(headers, answer)
    pictures = tuple(_read_pictures(answer))
    if not pictures:
        _refuse_what_is_no_empty_result(answer, usd=usd, facts=facts)
    return Generation(
        pictures=pictures,
        usd=usd,
        usd_source=usd_source,
        inference_id=inference_id,
        client_request_id=client_request_id,
        model=model,
    )


def _refuse_what_is_no_empty_result(answer: dict[str, Any], *, usd: Decimal | None, facts: dict[str, Any]) -> None:
    """Let an answer with an empty list of pictures pass; anything else without pictures is an error."""
    facts = {**facts, "usd": float(usd) if usd is not None else None}
    if answer.get("error"):
        error = answer["error"]
        text = error.get("message") if isinstance(error, dict) else error
        kind = error.get("code") or error.get("type") if isinstance(error, dict) else None
        raise InvalidRequestError(
            f"The API answered success with an error inside: {scrub(str(text))}",
            **{**facts, "kind": str(kind) if kind else None},
        )
    if any(name in answer for name in ("data", "images", "output")):
        return
    raise UnreadableResponseError(
        f"The API answered success without a list of pictures; it has only {scrub(', '.join(map(str, answer)), limit=200)}.",
        **facts,
    )


def _read_pictures(answer: dict[str, Any]) -> Iterator[AnsweredPicture]:
    """Yield each picture once, ``data`` before ``images`` before ``output.choices``."""
    output = answer.get("output")
    lists = [answer.get("data"), answer.get("images"), output.get("choices") if isinstance(output, dict) else None]
    flags = answer.get("has_nsfw_concepts")
    top_prompt, top_seed = _text(answer.get("prompt")), _integer(answer.get("seed"))
    violation = answer.get("content_violation") is True
    entries = next(
        (entries for entries in lists if isinstance(entries, list) and any(map(_names_a_picture, entries))), []
    )
    for position, entry in enumerate(entries):
        if entry is None:
            continue
        flagged = isinstance(flags, list) and position < len(flags) and flags[position] is True
        picture = _read_picture(entry, withheld=flagged or violation, prompt=top_prompt, seed=top_seed)
        if picture.url or picture.data or picture.broken or picture.withheld:  # all null: an absent picture
            yield picture


def _names_a_picture(entry: Any) -> bool:
    if isinstance(entry, str):
        return bool(entry)
    if not isinstance(entry, dict):
        return False
    return entry.get("content_violation") is True or any(
        isinstance(entry.get(name), str) and entry.get(name) for name in (*_LINK_NAMES, *_BASE64_NAMES)
    )


def _read_picture(entry: Any, *, withheld: bool, prompt: str | None, seed: int | None) -> AnsweredPicture:
    if isinstance(entry, str):
        entry = {"url": entry}
    if not isinstance(entry, dict):
        return AnsweredPicture(broken=f"an entry of type {type(entry).__name__}", withheld=withheld)
    withheld = withheld or entry.get("content_violation") is True
    prompt = _text(entry.get("revised_prompt")) or _text(entry.get("prompt")) or prompt
    own_seed = _integer(entry.get("seed"))
    seed = own_seed if own_seed is not None else seed
    link = next((entry[name] for name in _LINK_NAMES if isinstance(entry.get(name), str) and entry[name]), None)
    encoded = next((entry[name] for name in _BASE64_NAMES if isinstance(entry.get(name), str) and entry[name]), None)
    url, data, broken = None, None, None
    if link is not None and not link.startswith("data:"):
        url, broken = _read_link(link)
    if url is None and (text := encoded if encoded is not None else link) is not None:
        if text.startswith("data:") or encoded is not None:
            data, broken = _read_base64(text)
    return AnsweredPicture(url=url, data=data, prompt=prompt, seed=seed, withheld=withheld, broken=broken)


def _read_link(link: str) -> tuple[str | None, str | None]:
    try:
        parts = urlsplit(link)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    return (link, None) if usable else (None, "a link that is not http or https")


def _read_base64(text: str) -> tuple[bytes | None, str | None]:
    """Decode base64 text or a ``data:`` URI; white space and missing padding are forgiven, other characters are not."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma:
            return None, "a data: URI without data"
        if not head.endswith(";base64"):
            data = unquote_to_bytes(text)
            return (data, None) if data else (None, "an empty data: URI")
    text = "".join(text.split()).rstrip("=")
    try:
        data = base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_" if "-" in text or "_" in text else None, validate=True
        )
    except (binascii.Error, ValueError):
        return None, "base64 data that cannot be decoded"
    return (data, None) if data else (None, "empty base64 data")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _describe(body: bytes) -> str:
    start = body[:200].lstrip().lower()
    if not start:
        return "empty"
    return "an HTML page" if start.startswith((b"<!doctype", b"<html")) else "cut off or damaged"
