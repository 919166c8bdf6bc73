"""Queries of signed URLs, in the formats of result URLs (AI/ML API reference pages, examples of 2025 and 2026)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from urllib.parse import urlencode


def signed_query(path: str, *, style: str, now: float, seconds: float) -> str:
    """
    Return the query of a URL that expires.

    :param style: ``expires`` (OSS), ``amz`` (S3), ``se`` (Azure SAS), ``tos`` (Volcano)
    :param now: seconds since the epoch
    :param seconds: lifetime of the URL
    """
    signature = hashlib.sha256(f"{path}|{now}|{seconds}".encode()).hexdigest()
    starts, ends = datetime.fromtimestamp(now, UTC), datetime.fromtimestamp(now + seconds, UTC)
    stamp = starts.strftime("%Y%m%dT%H%M%SZ")
    if style == "amz":
        values = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": int(seconds),
            "X-Amz-Signature": signature,
        }
    elif style == "se":
        values = {
            "st": starts.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "se": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "sp": "r",
            "sig": signature,
        }
    elif style == "tos":
        values = {
            "X-Tos-Algorithm": "TOS4-HMAC-SHA256",
            "X-Tos-Date": stamp,
            "X-Tos-Expires": int(seconds),
            "X-Tos-Signature": signature,
        }
    else:
        values = {"Expires": int(now + seconds), "OSSAccessKeyId": "sandbox", "Signature": signature}
    return urlencode(values)
