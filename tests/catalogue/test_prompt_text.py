from __future__ import annotations

import json
from collections import deque
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from airflow_provider_imagen.catalogue.prompt_text import prompt_problem
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.exceptions import InvalidArgumentsError

KNOWN, UNKNOWN = "imagen-3.0-generate-002", "somebody/new-model"


@pytest.mark.parametrize("model", [KNOWN, UNKNOWN])
@pytest.mark.parametrize("text", ["None", " None\n", "null", "nan", "NaN", "NaT", "<NA>"])
def test_a_missing_value_written_as_text_is_not_a_prompt(text, model):
    with pytest.raises(InvalidArgumentsError, match=r"prompt\[4\]\.prompt=.*missing value"):
        build_requests({"model": model, "prompt": text}, can_store=True, where="prompt[4].")


@pytest.mark.parametrize("model", [KNOWN, UNKNOWN])
@pytest.mark.parametrize(
    "text",
    [
        str(["a harbour", "a lighthouse"]),
        str(["it's", 'a "quoted" one']),
        str(("a", "b")),
        str({"prompt": "a harbour", "seed": None}),
        str([{"prompt": "a harbour"}]),
        str([date(2026, 1, 1), "a harbour"]),
        str({"prompt": "a harbour", "at": datetime(2026, 1, 1, tzinfo=UTC)}),
        str([{"prompt": "a harbour", "usd": Decimal("0.5"), "seed": float("nan"), "shift": -1}]),
        str([]),
        str({}),
        json.dumps(["a harbour", None, True]),
        " ['a']\n",
        "LazySelectSequence([3 items])",
        "LazyXComSequence([1 item])",
        "<generator object prompts.<locals>.<genexpr> at 0x7f32f3d2c040>",
        "<map object at 0x7f32f3d2c040>",
        str({"a": "harbour"}.values()),
        str(frozenset({"harbour"})),
        str(set()),
        str(range(3)),
        str(deque(["a harbour"])),
        "<generator object sync_do_map at 0x7f32f3d2c040>",
    ],
)
def test_a_list_or_mapping_written_as_text_is_not_a_prompt(text, model):
    with pytest.raises(InvalidArgumentsError, match="not a prompt; pass the upstream task's result itself"):
        build_requests({"model": model, "prompt": text}, can_store=True)


@pytest.mark.parametrize(
    "text",
    [
        "None of the chairs are red",
        "Nonesuch Palace",
        "[a wide shot] a harbour [at dawn]",
        "[1girl, solo, harbour]",
        "(masterpiece), (best quality:1.2)",
        "{a|b} lighthouse",
        "{{ conn.imagen_default.password }}",
        "{{ params.entered }}",
        "(harbour.jpg, dawn.png)",
        "(a cat)",
        "[harbour, lighthouse]",
        "(masterpiece, best, 1)",
        "[cat(s), dog(s)]",
        "(1)",
        "a set of chairs (red)",
        "<lora:harbour:1.2> a boat",
        "<a boat at dawn>",
        "'a quoted prompt'",
        "42",
        json.dumps({"scene": "a harbour", "subjects": ["a boat"], "mood": None}),
        "a cat \U0001f431",
        "[" * 50_000,
    ],
)
def test_text_that_only_looks_similar_is_a_prompt(text):
    assert prompt_problem(text) is None


def test_brackets_nested_very_deeply_are_no_error():
    """Python 3.14 can read this JSON, and earlier versions cannot."""
    problem = prompt_problem("[" * 50_000 + "]" * 50_000)
    assert problem is None or "the text of a list" in problem


@pytest.mark.parametrize("model", [KNOWN, UNKNOWN])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("\udc31a cat", r"a lone surrogate.* at index 0;"),
        ("a \ud83d cat", r"a lone surrogate.* at index 2;"),
        ("a cat \ud83d", r"a lone surrogate.* at index 6;"),
        ("a\0cat", r"a null character \(U\+0000\) at index 1,"),
    ],
)
def test_text_that_no_database_or_api_accepts_is_rejected_with_its_index(text, what, model):
    with pytest.raises(InvalidArgumentsError, match=what):
        build_requests({"model": model, "prompt": text}, can_store=True)
