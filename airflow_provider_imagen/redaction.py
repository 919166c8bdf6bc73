"""Redact API keys, signatures and other secrets from anything a person may read."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING

from airflow_provider_imagen.signed_urls import without_query

if TYPE_CHECKING:
    from collections.abc import Iterator

# Possessive quantifiers, and matches that succeed even with nothing to remove, keep these linear.
_URL = r"""(?i)(?<![a-z0-9+.-])([a-z0-9+.-]++://)(?:[^\s/?#@"'<>]*@)*([^\s?#"'<>]*+)(?:[?#][^\s"'<>]*)?"""
_SIGNED_FIELD = r"""(?i)([?&][a-z0-9_-]*(?:sig|signature|token|secret|key|credential|password)=)[^\s&"'<>]+"""
_BEARER = r"(?i)\b(bearer)(?:\s|%20)+[A-Za-z0-9._~+/=%-]+"
_BASIC = r"(?i)\b(basic)(?:\s|%20)+([A-Za-z0-9+/_=-]{6,})"
_FOREIGN_KEY = r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"
"""Keys in the format of OpenAI and its gateways; a gateway may quote its own key in an error."""

_LOGIN_PART = r"(://[^\s/:@'\"]*+:)[^\s/@'\"]*+@"
_QUERY = r"(://[^\s'\"?#]*+)(?:[?#][^\s'\"]*)?"
_NAMED_VALUE = (
    r"(?i)(?<![\w-])(?=[\w-]*(?:key|token|secret|signature|sig|passw(?:or)?d|credential|authorization))"
    r"([\w-]++['\"]?\s*+[=:]\s*+)(?:(?:bearer|basic|sharedkey)\s+)?['\"]?[^\s'\",;&)]+"
)
_LOGIN_OF_ARGUMENT = r"://(?:[^/\s@]*@)+"
_QUERY_OF_ARGUMENT = r"(?s)\A((?>.*?://)[^?#]*+)[?#].*"

_READ_PER_SHOWN = 20
_SHORTEST_ENCODED = 8


def scrub(text: str, *secrets: str | None, limit: int = 600) -> str:
    """
    Return untrusted text in a form safe to log: without secrets, query strings and control characters, and short.

    :param secrets: values to redact wherever they occur, above all the API key
    :param limit: most characters returned
    """
    text = hide(text, *secrets)
    if len(text) > limit * _READ_PER_SHOWN:  # the cut may split a URL with a login, so drop the last word
        words = text[: limit * _READ_PER_SHOWN].rsplit(None, 1)
        text = words[0] if words else ""
    if re.fullmatch(r"[A-Za-z0-9_.:-]*", text):  # an id, which can only be a foreign key
        text = re.sub(_FOREIGN_KEY, "***", text)
        return text if len(text) <= limit else f"{text[: limit - 1]}…"
    text = re.sub(_BEARER, r"\1 ***", text)
    text = re.sub(_BASIC, _without_login, text)
    text = re.sub(_FOREIGN_KEY, "***", text)
    text = re.sub(_URL, r"\1\2", text)
    text = re.sub(_SIGNED_FIELD, r"\1***", text)
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def scrub_storage_text(text: str) -> str:
    """
    Return an address or error of a store in a form safe to log: on one line, without secrets, at most 300 characters.

    Unlike :func:`scrub`, keeps the connection id in front of a bucket (``s3://conn@bucket``), and removes any value
    whose name suggests a secret (``AccountKey=…``).
    """
    line = " ".join(text.split())[:600]
    line = re.sub(_LOGIN_PART, r"\1***@", line)
    line = re.sub(_QUERY, r"\1", line)
    line = re.sub(_NAMED_VALUE, r"\1***", line)
    return line if len(line) <= 300 else f"{line[:299]}…"


def elide_url(value: str) -> str:
    """Return an argument, which may be a URL, with its login and query replaced by ``…``."""
    return re.sub(_QUERY_OF_ARGUMENT, r"\1?…", re.sub(_LOGIN_OF_ARGUMENT, "://…@", value))


def hide(text: str, *secrets: str | None) -> str:
    """Return the text with secrets redacted, whether plain, URL-encoded, JSON- or HTML-escaped, or in base64."""
    for secret in secrets:
        if secret and _may_contain(text, secret):
            text = _forms_of(secret).sub("***", text)
    return text


def _may_contain(text: str, secret: str) -> bool:
    """Return ``False`` only if the text certainly lacks the secret; spares most processes compiling the pattern."""
    if re.search(r"[%\\&\s]", text):  # it may be encoded, or wrapped
        return True
    standard_base64 = text.replace("-", "+").replace("_", "/")
    return secret in text or any(encoded in standard_base64 for encoded in _base64_forms(secret))


def scrub_id(value: str | None, *secrets: str | None) -> str | None:
    """Return an id from the API in a form safe to log; an id that is itself a secret becomes ``***``, not ``None``."""
    return scrub(value, *secrets, limit=200) or None if value else None


@lru_cache(maxsize=8)
def _forms_of(secret: str) -> re.Pattern[str]:
    """Return a pattern that matches a secret in every supported encoding."""
    letters = {"+": "(?:[+-]|%2[Bb])", "/": r"(?:\\?/|_|%2[Ff])"}
    forms = ["".join(map(_forms_of_character, secret))]
    for encoded in _base64_forms(secret):
        wrapped = r"(?:\s|\\[rn])*".join(letters.get(letter, letter) for letter in encoded)  # in lines, as MIME has it
        forms.append(wrapped + "(?:[A-Za-z0-9+/_=-]|%3[Dd])*")
    return re.compile("|".join(forms))


def _base64_forms(secret: str) -> Iterator[str]:
    """Yield what a secret always looks like in base64, whatever surrounds it; nothing for a very short one."""
    data = secret.encode("utf-8", "surrogatepass")
    for before in range(3):  # base64 encodes groups of three bytes, so the offset within a group matters
        encoded = base64.b64encode(bytes(before) + data).decode()
        known = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        if len(known) >= _SHORTEST_ENCODED:
            yield known


def _forms_of_character(character: str) -> str:
    plain, number = re.escape(character), ord(character)
    percent = "".join(f"%(?:25)*{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    named = re.escape(escape(character))
    return (
        rf"(?:(?i:{percent}|\\{{1,4}}(?:u{number:04x}|x{number:02x})|&\#0*{number};|&\#x0*{number:x};)"
        rf"|{named}|\\{{0,4}}{plain})"
    )


def _without_login(found: re.Match[str]) -> str:
    """Return the match with Basic credentials redacted; an ordinary word after "basic" stays."""
    try:
        login = base64.b64decode(found[2].rstrip("=") + "==", altchars=b"-_" if {"-", "_"} & set(found[2]) else None)
    except binascii.Error:
        return found[0]
    return f"{found[1]} ***" if b":" in login else found[0]


class _WithoutQueries(logging.Filter):
    """Log filter that strips the query from every URL in a record's arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return ``True`` after stripping the queries."""
        if isinstance(record.args, tuple):
            record.args = tuple(without_query(part) if isinstance(part, str) else part for part in record.args)
        return True


_WITHOUT_QUERIES = _WithoutQueries()


def keep_queries_out_of_logs() -> None:
    """
    Strip queries from the URLs that urllib3 logs, for the whole process. Idempotent.

    urllib3 logs the path and query of every request at DEBUG and of some at WARNING, and the query of a signed result
    URL grants access to the image.
    """
    for name in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_WITHOUT_QUERIES)
