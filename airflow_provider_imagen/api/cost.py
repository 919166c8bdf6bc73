"""Read what a call cost from its response headers or body."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

CREDITS_PER_USD = Decimal(2_000_000)
"""Credits per USD (docs, FAQ "How can I track my funds", 2026-08-21)."""

CostSource = Literal["header", "usage", "estimate"]

_AMOUNT = re.compile(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE]-[0-9]{1,9})?")
_MAX_AMOUNT = Decimal(10) ** 15
"""Largest plausible amount in any unit; a larger one would corrupt every total that includes it."""


def read_amount(value: Any) -> Decimal | None:
    """
    Return a plausible non-negative amount, else ``None``.

    Text must be a number as JSON writes it. Other forms that :class:`~decimal.Decimal` accepts (``1_0``, ``1e5``,
    spaces, digits of other scripts) are more likely corruption than money. Negative exponents are accepted, because
    JavaScript and Python write small amounts that way: ``5e-05``.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    if isinstance(value, str) and not _AMOUNT.fullmatch(value):
        return None
    amount = Decimal(str(value))
    return amount if amount.is_finite() and 0 <= amount <= _MAX_AMOUNT else None


def read_cost(headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[Decimal | None, CostSource | None]:
    """
    Return the charge for a call in USD, and where it was stated.

    Headers win over the body, and dollars over credits; ``tokens_used`` is what credits were called until about
    November 2025 (docs, request-tracing-and-cost page, 2026-08-21). A LiteLLM proxy in between computes its own cost
    in USD (LiteLLM docs, response_headers page, 2026-10); its 0 means that it has no price for the model.

    :param headers: response headers, matched case-insensitively
    :param body: the decoded JSON body
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    if (usd := read_amount(by_name.get("x-aimlapi-usd-spent"))) is not None:
        return usd, "header"
    if (credits_used := read_amount(by_name.get("x-aimlapi-credits-used"))) is not None:
        return credits_used / CREDITS_PER_USD, "header"
    if usd := read_amount(by_name.get("x-litellm-response-cost")):
        return usd, "header"
    meta = body.get("meta")
    for usage in (meta.get("usage") if isinstance(meta, dict) else None, body.get("usage")):
        if not isinstance(usage, dict):
            continue
        if (usd := read_amount(usage.get("usd_spent"))) is not None:
            return usd, "usage"
        for name in ("credits_used", "tokens_used"):
            if (credits_used := read_amount(usage.get(name))) is not None:
                return credits_used / CREDITS_PER_USD, "usage"
    return None, None


def read_row_usd(amounts: Any) -> Decimal | None:
    """Return the amount in USD of a row of the request log or the ledger; ``None`` if it states none."""
    if not isinstance(amounts, dict):
        return None
    if (usd := read_amount(amounts.get("usd"))) is not None:
        return usd
    credits_used = read_amount(amounts.get("credits"))
    return None if credits_used is None else credits_used / CREDITS_PER_USD
