"""The one way in which this package writes amounts of money for people; data keeps plain numbers."""

from __future__ import annotations

from decimal import Decimal


def format_usd(usd: float | Decimal) -> str:
    """
    Return an amount with at least two and at most four decimals, such as ``$0.042``, ``$1,234.50`` or ``-$0.50``.

    Amounts below a tenth of a cent have up to seven: one credit of the API, its smallest charge, is ``$0.0000005``.
    """
    amount = abs(Decimal(str(usd)))  # exact, unlike a float of the same digits
    places = 4 if amount >= Decimal("0.001") else 7
    whole, _, decimals = f"{amount:,.{places}f}".partition(".")
    return f"{'-' if usd < 0 else ''}${whole}.{decimals.rstrip('0'):0<2}"
