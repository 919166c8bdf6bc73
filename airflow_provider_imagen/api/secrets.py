"""Keep keys and signatures out of everything a person may read."""

from __future__ import annotations

import logging
import re
from urllib.parse import urlsplit

_USER_INFO = r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>]+@"
_URL_QUERY = r"(?i)(https?://[^\s?#\"'<>]+)[?#][^\s\"'<>]*"
_BEARER = r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]+"
_READ_PER_SHOWN = 20


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
    if len(text) > limit * _READ_PER_SHOWN:  # the last word may be half an address with a login, so it goes
        words = text[: limit * _READ_PER_SHOWN].rsplit(None, 1)
        text = words[0] if words else ""
    text = re.sub(_BEARER, r"\1 ***", text)
    text = re.sub(_USER_INFO, r"\1", text)
    text = re.sub(_URL_QUERY, r"\1", text)
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


class _WithoutQueries(logging.Filter):
    """Cut the query off every address in a line of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the line pass, without queries."""
        if isinstance(record.args, tuple):
            record.args = tuple(without_query(part) if isinstance(part, str) else part for part in record.args)
        return True


_WITHOUT_QUERIES = _WithoutQueries()


def keep_queries_out_of_logs() -> None:
    """
    Have urllib3 name addresses without their query in its log, for the whole process.

    It writes the path and query of every request at DEBUG, and of some at WARNING, and the query of a result link is
    what gives access to the picture. Calling this again changes nothing.
    """
    for name in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_WITHOUT_QUERIES)
