"""What a call cost, read from the headers and bodies that carry it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

CREDITS_PER_USD = Decimal(2_000_000)
"""1 USD buys this many credits (docs, FAQ "How can I track my funds", 2026-08-21)."""

CostSource = Literal["header", "usage", "estimate"]

_AMOUNT = re.compile(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE]-[0-9]{1,9})?")
_MOST = Decimal(10) ** 15
"""No bill is higher, in whatever unit; a larger number is an error, and would spoil every sum it gets into."""


def read_amount(value: Any) -> Decimal | None:
    """
    Read a non-negative amount of a sensible size; anything else is ``None``.

    Text has to be a number as JSON writes it. Other spellings that :class:`~decimal.Decimal` reads (``1_0``, ``1e5``,
    blanks, the digits of other scripts) are more likely damage than money. Negative exponents count, because
    JavaScript and Python write small amounts so: ``5e-05``.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    if isinstance(value, str) and not _AMOUNT.fullmatch(value):
        return None
    amount = Decimal(str(value))
    return amount if amount.is_finite() and 0 <= amount <= _MOST else None


def read_cost(headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[Decimal | None, CostSource | None]:
    """
    Find what a call was charged, in USD, and say where that stood.

    Headers win over the body, dollars over credits; ``tokens_used`` is the name credits had until
    about November 2025 (docs, request-tracing-and-cost page, 2026-08-21). A LiteLLM proxy in between computes costs of
    its own, in USD (LiteLLM docs, response_headers page, 2026-10); its 0 means that it knows no price for the model.

    :param headers: response headers, looked up without regard to case
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
