from __future__ import annotations

import pytest

from airflow_provider_imagen.api.lifecycle import judge_models

LISTED = [{"id": "maker/new", "aliases": ["old-name"]}, {"id": "flux/schnell", "aliases": None}, "no row", {}]
RETIRED = [
    {"id": "old-name", "aliases": [], "status": "superseded", "shutdown_at": None, "replaced_by": "maker/new"},
    {
        "id": "maker/going",
        "aliases": ["going"],
        "status": "deprecated",
        "shutdown_at": "2026-12-31",
        "replaced_by": "maker/new",
    },
    {"id": "maker/gone", "status": "withdrawn", "shutdown_at": "2026-06-30T00:00:00.000Z", "replaced_by": None},
    {"id": "flux/schnell", "status": "a word of tomorrow"},
    None,
]


def judge(model):
    (state,) = judge_models([model], listed=LISTED, retired=RETIRED)
    return state


@pytest.mark.parametrize(
    ("model", "state", "is_fine", "sentence"),
    [
        ("maker/new", "alive", True, "alive"),
        ("old-name", "superseded", True, "alive, renamed to maker/new"),
        ("maker/going", "deprecated", False, "deprecated, ends on 2026-12-31; use maker/new"),
        ("going", "deprecated", False, "deprecated, ends on 2026-12-31; use maker/new"),
        ("maker/gone", "withdrawn", False, "withdrawn on 2026-06-30"),
        ("flux/schnell", "alive", True, "alive"),
        ("flux/schnel", "unknown", False, "not known to the API; did you mean flux/schnell"),
        ("flux/dev", "unknown", False, "not known to the API"),
        ("dall-e-2", "withdrawn", False, "withdrawn"),
        ("imagen-4.0-ultra-generate-preview-06-06", "withdrawn", False, "withdrawn; use google/gemini-2.5-flash-image"),
    ],
)
def test_both_lists_together_say_what_a_model_is(model, state, is_fine, sentence):
    health = judge(model)
    assert (health.state, health.is_fine) == (state, is_fine)
    assert health.sentence.startswith(sentence)
    assert health.to_json()["state"] == state


def test_the_date_is_a_day_and_the_order_is_that_of_the_question():
    states = judge_models(["maker/gone", "maker/new", "maker/gone"], listed=LISTED, retired=RETIRED)
    assert [state.model for state in states] == ["maker/gone", "maker/new", "maker/gone"]
    assert states[0].shutdown_at == "2026-06-30"


@pytest.mark.parametrize("rows", [[], [None], [{"id": 5, "aliases": 5}]])
def test_rows_that_say_nothing_make_nothing_alive(rows):
    (state,) = judge_models(["maker/new"], listed=rows, retired=rows)
    assert state.state == "unknown"
