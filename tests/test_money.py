from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.money import format_usd


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0.00"),
        (0.04, "$0.04"),
        (0.042, "$0.042"),
        (0.1 + 0.2, "$0.30"),
        (0.0008, "$0.0008"),
        (0.00083333, "$0.0008333"),
        (0.0000005, "$0.0000005"),
        (0.99996, "$1.00"),
        (1, "$1.00"),
        (5.376, "$5.376"),
        (1234.5, "$1,234.50"),
        (Decimal("1E+3"), "$1,000.00"),
        (Decimal("4E-4"), "$0.0004"),
        (-0.5, "-$0.50"),
    ],
)
def test_an_amount_reads_like_a_price(usd, text):
    assert format_usd(usd) == text


@given(st.decimals(min_value=0, max_value=10**15, allow_nan=False))
def test_every_amount_is_plain_and_precise(usd):
    text = format_usd(usd)
    assert re.fullmatch(r"\$\d{1,3}(,\d{3})*\.\d{2,7}", text)
    shown = Decimal(text.replace("$", "").replace(",", ""))
    assert abs(shown - usd) <= (Decimal("0.00005") if usd >= Decimal("0.001") else Decimal("0.00000005"))
