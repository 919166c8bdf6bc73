"""
Signed URLs: recognize them, read when they expire, and strip their signature.

Pure, standard library only.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

_SIGNERS = ("x-amz", "x-tos", "x-goog", "x-oss")


def without_query(url: str) -> str:
    """Return the URL without its query and fragment, which may contain a signature."""
    return url.split("#", 1)[0].split("?", 1)[0]


def is_signed(url: str) -> bool:
    """Return whether a URL has a query string; result URLs have one only if they are signed."""
    try:
        return bool(urlsplit(url).query)
    except ValueError:
        return "?" in url


def url_expiry(url: str) -> datetime | None:
    """
    Return when a signed URL expires, in UTC; ``None`` if it does not state that.

    Reads Azure's ``se``, the older S3, CloudFront and Aliyun form (``Expires``, seconds since 1970), and the date and
    lifetime pairs of S3, Google, Volcengine and Aliyun (``X-Amz-Date`` with ``X-Amz-Expires`` and so on). Never raises:
    malformed values are ignored. If a URL states several times, the earliest counts.
    """
    try:
        fields = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    except ValueError:
        return None
    times = [_iso_time(fields.get("se")), _epoch_time(fields.get("expires"))]
    times.extend(_signed_time(fields.get(f"{signer}-date"), fields.get(f"{signer}-expires")) for signer in _SIGNERS)
    return min((moment for moment in times if moment is not None), default=None)


def _iso_time(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _epoch_time(text: str | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(_whole_number(text), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _signed_time(date: str | None, lifetime_seconds: str | None) -> datetime | None:
    try:
        start = datetime.strptime(date or "", "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return start + timedelta(seconds=_whole_number(lifetime_seconds))
    except (ValueError, OverflowError):
        return None


def _whole_number(text: str | None) -> int:
    """Return the value of ASCII digits; ``int`` alone would also accept ``1_0`` and other scripts' digits."""
    if text is None or not (text.isascii() and text.isdecimal()):
        raise ValueError("not a whole number")
    return int(text)
