"""Keep keys and signatures out of everything a person may read."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_URL_QUERY = re.compile(r"(https?://[^\s?#\"'<>]+)[?#][^\s\"'<>]*")
_BEARER = re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]+")


def scrub(text: str, *secrets: str | None, limit: int = 600) -> str:
    """
    Make a text of someone else's fit for a log: no secret, no query string, no terminal control, bounded length.

    :param text: what was received
    :param secrets: values to blank out wherever they stand, the API key first of all
    :param limit: characters to keep
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = _BEARER.sub(r"\1 ***", text)
    text = _URL_QUERY.sub(r"\1", text)
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def without_query(url: str) -> str:
    """Drop the query and the fragment of a link, which may hold a signature."""
    return url.split("#", 1)[0].split("?", 1)[0]


def is_signed(url: str) -> bool:
    """Say whether a link carries a query string; result links only do when they are signed."""
    try:
        return bool(urlsplit(url).query)
    except ValueError:
        return "?" in url
