"""
Parse generation responses of every known shape into images, cost and ids. Pure.

The shapes (docs, image model pages, 2025-02 to 2026-08): ``data[]``, ``images[]``, both with the same images, OpenAI's
``created`` + ``data[]``, and ``output.choices[]`` from 2024. An image is a URL, a ``data:`` URI, or base64 text under
one of four names.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.api.cost import CostSource, read_cost
from airflow_provider_imagen.api.data_uris import is_data_uri, read_base64, read_data_uri
from airflow_provider_imagen.api.json_body import REPLACED, find_string_fields, read_json, storable
from airflow_provider_imagen.exceptions import InvalidRequestError, LostAnswerError, UnreadableResponseError
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.redaction import hide, scrub, scrub_id

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

_BASE64_NAMES = ("b64_json", "base64", "image_base64", "b64")
_URL_NAMES = ("url", "image_url", "image")
_LIST_NAMES = ("data", "images", "output")
_MAX_BYTES_BEFORE_JSON = 4096
"""The JSON must begin within these bytes; a warning or a few damaged characters may precede it."""

_NO_CONTROLS = dict.fromkeys(range(32))


class GeneratedImage(ResponseImage, frozen=True, kw_only=True):
    """
    One image in a response: its ``url`` or ``data``, or why it has neither (``broken`` or ``withheld``).

    The model marks an image as filtered with ``has_nsfw_concepts`` or ``content_violation``. ``seed`` is the one that
    the response states; its URL is not encrypted.

    :param data: the image itself, decoded from base64
    """

    data: bytes | None = None


class Generation(Struct, frozen=True):
    """
    The result of one paid request.

    :param pictures: images in response order; possibly fewer than requested, or none
    :param usd: the charge in USD; ``None`` if the response does not state it
    :param usd_source: where ``usd`` was stated
    :param inference_id: the API's id of the paid work
    :param client_request_id: the id we sent
    :param model: the model requested, as named in the request
    :param answered_model: the model that served the request and is charged for, if the response names one: some ids
        route to several models (header ``x-aimlapi-model`` or ``meta.model``; docs, d1-router page, 2026-10)
    :param null_items: number of list entries with nulls in place of an image
    """

    pictures: tuple[GeneratedImage, ...]
    usd: Decimal | None
    usd_source: CostSource | None
    inference_id: str | None
    client_request_id: str | None
    model: str | None
    null_items: int = 0
    answered_model: str | None = None

    @property
    def urls(self) -> list[str]:
        """URLs of the images that have one and were not filtered."""
        return [image.url for image in self.pictures if image.url and not image.withheld]


def read_generation(
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    api_key: str | None = None,
    client_request_id: str | None = None,
    model: str | None = None,
) -> Generation:
    """
    Return the result in a 2xx response.

    :param api_key: redacted from everything quoted from the response
    :raises LostAnswerError: the body is truncated or a gateway's page; the request may have been billed
    :raises InvalidRequestError: the body is an error despite the status
    :raises UnreadableResponseError: the JSON has no known structure
    """
    by_name = {name.lower(): storable(value) for name, value in headers.items()}
    inference_id = scrub_id(by_name.get("x-inference-id"), api_key)
    details: dict[str, Any] = {
        "status": status,
        "inference_id": inference_id,
        "client_request_id": client_request_id,
        "model": model,
    }
    try:
        document = _read_document(body)
    except ValueError:
        usd, _ = read_cost(headers, {})
        raise LostAnswerError(
            f"The API returned {status} with an incomplete or invalid JSON body "
            f"({len(body)} bytes, {_describe(body)}); the request may have been billed.",
            usd=_float(usd),
            **details,
        ) from None
    usd, usd_source = read_cost(headers, document if isinstance(document, dict) else {})
    details["usd"] = _float(usd)
    if not isinstance(document, dict):
        raise UnreadableResponseError(
            f"The API returned {status} with a JSON {type(document).__name__}; an object was expected.", **details
        )
    images = _read_images(document)
    if not images:
        _check_empty_result(document, api_key=api_key, details=details)
    return Generation(
        pictures=tuple(
            replace(image, prompt=hide(image.prompt, api_key)) if image.prompt else image for image in images
        ),
        usd=usd,
        usd_source=usd_source,
        inference_id=inference_id,
        client_request_id=client_request_id,
        model=model,
        null_items=_count_null_items(document),
        answered_model=_responding_model(by_name, document, api_key),
    )


def _read_document(body: bytes) -> Any:
    """
    Return the JSON of a response, or the images that can be recovered from incomplete JSON.

    :raises ValueError: there is neither
    """
    with suppress(ValueError):
        return read_json(body)
    lists = [place for name in _LIST_NAMES if (place := body.find(f'"{name}"'.encode())) >= 0]
    if not lists or body.lstrip()[:1] == b"<":
        raise ValueError("no images")
    start = body[:_MAX_BYTES_BEFORE_JSON].find(b"{")
    with suppress(ValueError):
        if start > 0 and isinstance(found := read_json(body[start:]), dict) and found.keys() & set(_LIST_NAMES):
            return found
    texts = dict.fromkeys(find_string_fields(body[min(lists) :], ("url", "image_url", *_BASE64_NAMES)))
    if not texts:
        raise ValueError("no images")
    return {"data": [{name: text} for name, text in texts]}


def _responding_model(headers: Mapping[str, str], document: dict[str, Any], api_key: str | None) -> str | None:
    """Return the model that served the request, if stated; the header takes precedence over the body."""
    meta = document.get("meta")
    stated_names = (
        headers.get("x-aimlapi-model"),
        meta.get("model") if isinstance(meta, dict) else None,
        document.get("model"),
    )
    name = next(filter(None, map(_text, stated_names)), None)
    return scrub(name, api_key, limit=200) if name else None


def _count_null_items(document: dict[str, Any]) -> int:
    """Return the number of nulls in the longest image list; parallel lists contain the same images."""
    lists = [_entries(document.get(name)) for name in _LIST_NAMES]
    return sum(_read_image(entry, withheld=False, prompt=None, seed=None) is None for entry in max(lists, key=len))


def _check_empty_result(document: dict[str, Any], *, api_key: str | None, details: dict[str, Any]) -> None:
    """Raise for a response without images, unless it has an image list that is empty and reports no error."""
    if error := document.get("error"):
        error = error if isinstance(error, dict) else {"message": error}
        reason = _text(error.get("message")) or "no reason given"
        kind = _text(error.get("code")) or _text(error.get("type"))
        raise InvalidRequestError(
            f"The API reported success, but its response contains an error: {scrub(reason, api_key)}",
            kind=scrub(kind, api_key, limit=100) if kind else None,
            **details,
        )
    if not any(name in document for name in _LIST_NAMES):
        raise UnreadableResponseError(
            f"The API reported success, but its response has no list of images, only "
            f"{scrub(', '.join(document), api_key, limit=200)}.",
            **details,
        )


def _read_images(document: dict[str, Any]) -> tuple[GeneratedImage, ...]:
    """
    Return the images of the list with the most readable ones; on a tie, ``data``, ``images``, then ``output.choices``.

    Parallel lists contain the same images (docs, Seedream v4 and USO pages, 2026-08), so they are not combined.
    """
    flags = document.get("has_nsfw_concepts")
    flagged = {number for number, flag in enumerate(flags if isinstance(flags, list) else ()) if flag is True}
    common: dict[str, Any] = {"prompt": _text(document.get("prompt")), "seed": _integer(document.get("seed"))}
    violation = document.get("content_violation") is True
    candidates = [
        tuple(
            image
            for number, entry in enumerate(_entries(document.get(name)))
            if (image := _read_image(entry, withheld=violation or number in flagged, **common)) is not None
        )
        for name in _LIST_NAMES
    ]
    return max(candidates, key=lambda images: (sum(not image.broken for image in images), len(images)))


def _entries(listed: Any) -> list[Any]:
    """Return the entries of an image list; a single value counts as a list of one."""
    if isinstance(listed, dict) and "choices" in listed:
        listed = listed["choices"]
    if listed is None:
        return []
    return listed if isinstance(listed, list) else [listed]


def _read_image(entry: Any, *, withheld: bool, prompt: str | None, seed: int | None) -> GeneratedImage | None:
    """Return the image in a list entry; ``None`` if its image fields are empty and it is not marked as filtered."""
    if isinstance(entry, str):
        entry = {"url": entry}
    if not entry:
        return GeneratedImage(withheld=True) if withheld else None
    if not isinstance(entry, dict):
        return GeneratedImage(broken=f"an entry of type {type(entry).__name__}", withheld=withheld)
    withheld = withheld or entry.get("content_violation") is True
    own_seed = _integer(entry.get("seed"))
    stated_url, encoded = _first_text(entry, _URL_NAMES), _first_text(entry, _BASE64_NAMES)
    url, data, broken = None, None, None
    if stated_url and not is_data_uri(stated_url):
        url, broken = _read_url(stated_url)
    elif stated_url and encoded is None:
        encoded = stated_url
    if url is None and encoded:
        data, broken = _read_base64(encoded)
    if url is None and data is None and broken is None:
        known = [entry[name] for name in (*_URL_NAMES, *_BASE64_NAMES) if name in entry]
        if any(known) or not known:
            broken = "an entry without a URL or base64 data"
        elif not withheld:
            return None
    return GeneratedImage(
        url=url,
        data=data,
        prompt=_text(entry.get("revised_prompt")) or _text(entry.get("prompt")) or prompt,
        seed=seed if own_seed is None else own_seed,
        withheld=withheld,
        broken=None if withheld and url is None and data is None else broken,
    )


def _first_text(entry: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first text under one of these names; a URL may be one level deeper, as ``{"url": …}``."""
    for name in names:
        value = entry.get(name)
        if isinstance(value, dict):
            value = value.get("url")
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _read_url(url: str) -> tuple[str | None, str | None]:
    """Return the URL, or why it cannot be used."""
    try:
        parts = urlsplit(url)
        is_usable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and REPLACED not in url
        )
    except ValueError:
        is_usable = False
    return (url, None) if is_usable else (None, "a URL that is malformed or not http or https")


def _read_base64(text: str) -> tuple[bytes | None, str | None]:
    """Return the bytes of base64 text or a ``data:`` URI, or why they cannot be decoded."""
    if REPLACED in text:
        return None, "base64 with invalid characters"
    decode = (lambda uri: read_data_uri(uri).data) if is_data_uri(text) else read_base64
    with suppress(ValueError):
        return decode(text), None
    try:
        return decode(text.translate(_NO_CONTROLS)), None
    except ValueError as error:
        return None, str(error)


def _text(value: Any) -> str | None:
    """Return the value if it is non-empty text, else ``None``."""
    return value if isinstance(value, str) and value else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) < 10**30 else None


def _float(usd: Decimal | None) -> float | None:
    return float(usd) if usd is not None else None


def _describe(body: bytes) -> str:
    start = body[:200].lstrip().lower()
    if not start:
        return "empty"
    return "an HTML page" if start.startswith((b"<!doctype", b"<html")) else "truncated or damaged"
