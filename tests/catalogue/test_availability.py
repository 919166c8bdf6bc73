from __future__ import annotations

from datetime import date

import pytest

from airflow_provider_imagen.catalogue.availability import (
    IMAGE_TYPE,
    ending_soon,
    judge_models,
    judge_models_offline,
    look_up,
)
from airflow_provider_imagen.catalogue.lookup import all_models, find_model

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
        ("imagen-4.0-ultra-generate-preview-06-06", "withdrawn", False, "withdrawn; use google/gemini-3-1-flash-image"),
        ("microsoft/mai-image-2.5", "withdrawn", False, "withdrawn"),
    ],
)
def test_the_two_lists_together_give_a_models_state(model, state, is_fine, sentence):
    health = judge(model)
    assert (health.state, health.is_fine) == (state, is_fine)
    assert health.sentence.startswith(sentence)
    assert health.to_json()["state"] == state


@pytest.mark.parametrize(
    ("model", "today", "state", "is_fine", "sentence"),
    [
        ("flux/schnell", "2026-11-29", "catalogued", True, "in the catalogue"),
        ("blackforestlabs/flux-2-max", "2026-11-29", "catalogued", True, "in the catalogue"),
        ("flux/schnel", "2026-11-29", "uncatalogued", False, "not in the catalogue; did you mean flux/schnell"),
        ("dall-e-2", "2026-11-29", "deprecated", False, "deprecated, ends on an unknown date"),
        (
            "imagen-4.0-ultra-generate-preview-06-06",
            "2026-08-16",
            "deprecated",
            False,
            "deprecated, ends on 2026-08-17; use google/gemini-3-1-flash-image-preview",
        ),
        ("imagen-4.0-ultra-generate-preview-06-06", "2026-08-17", "withdrawn", False, "withdrawn on 2026-08-17; use"),
    ],
)
def test_without_the_api_the_catalogue_gives_a_models_state(model, today, state, is_fine, sentence):
    (health,) = judge_models_offline([model], today=date.fromisoformat(today))

    assert (health.state, health.is_fine) == (state, is_fine)
    assert health.sentence.startswith(sentence)


def test_without_the_api_an_announced_end_is_warned_about_too():
    (health,) = judge_models_offline(["openai/gpt-image-1"], today=date(2026, 10, 1))

    assert health.is_fine
    assert "2026-10-23" in health.warning


def test_dates_are_days_and_the_requested_order_is_kept():
    states = judge_models(["maker/gone", "maker/new", "maker/gone"], listed=LISTED, retired=RETIRED)
    assert [state.model for state in states] == ["maker/gone", "maker/new", "maker/gone"]
    assert states[0].shutdown_at == "2026-06-30"


@pytest.mark.parametrize("rows", [[], [None], [{"id": 5, "aliases": 5}]])
def test_empty_rows_make_no_model_alive(rows):
    (state,) = judge_models(["maker/new"], listed=rows, retired=rows)
    assert state.state == "unknown"


@pytest.mark.parametrize(
    ("today", "warning"),
    [
        (date(2026, 9, 1), None),
        (date(2026, 9, 2), "90 days left"),
        (date(2026, 11, 30), "1 day left"),
        (date(2026, 12, 1), "that date has passed, so requests may fail"),
        (date(2027, 5, 1), "that date has passed"),
    ],
)
def test_an_announced_end_is_warned_about_from_ninety_days_before(today, warning):
    found = ending_soon("openai/gpt-image-1-5", today)
    assert found == ending_soon("gpt-image-1-5", today) == ending_soon(find_model("openai/gpt-image-1-5"), today)
    if warning is None:
        assert found is None
    else:
        assert found.startswith("its maker retires it on 2026-12-01 (OpenAI, deprecations page, 2026-10): ")
        assert warning in found
        assert found.endswith("use openai/gpt-image-2.5-sunburst")


def test_models_without_an_announced_end_are_not_warned_about():
    quiet = [model for model in all_models() if not model.ends]
    assert [ending_soon(model, date(2100, 1, 1)) for model in quiet] == [None] * len(quiet)
    assert ending_soon("no/such-model", date(2100, 1, 1)) is None


def test_a_listed_model_with_an_announced_end_is_alive_with_a_warning():
    listed = [{"id": "openai/gpt-image-1", "aliases": ["gpt-image-1"]}]
    for name in ("openai/gpt-image-1", "gpt-image-1"):
        (health,) = judge_models([name], listed=listed, retired=[], today=date(2026, 10, 1))
        assert (health.state, health.is_fine) == ("alive", True)
        assert "2026-10-23" in health.warning
        assert health.to_json()["warning"] == health.warning
        (health,) = judge_models([name], listed=listed, retired=[])
        assert health.warning is None


def test_an_unlisted_alias_is_judged_by_the_models_other_names():
    listed = [{"id": "openai/gpt-image-2", "aliases": []}]
    retired = [{"id": "google/gemini-2.5-flash-image", "aliases": [], "status": "withdrawn", "shutdown_at": None}]
    names = ["gpt-image-2", "gemini-2.5-flash-image"]
    assert [state.state for state in judge_models(names, listed=listed, retired=retired)] == ["alive", "withdrawn"]


def test_a_live_id_is_not_affected_by_a_retired_alias():
    listed = [{"id": "google/nano-banana-2", "aliases": []}]
    retired = [{"id": "google/gemini-3-1-flash-image-preview", "aliases": [], "status": "withdrawn"}]
    (state,) = judge_models(["google/nano-banana-2"], listed=listed, retired=retired)
    assert state.state == "alive"


@pytest.mark.parametrize(
    ("row", "known_as", "can_make_images", "sentence"),
    [
        ({"id": "flux/dev", "aliases": ["maker/dev"], "type": IMAGE_TYPE}, "flux/dev", True, "is flux/dev under"),
        ({"id": "maker/dev", "aliases": ["flux/dev"], "type": IMAGE_TYPE}, "flux/dev", True, "is flux/dev under"),
        ({"id": "maker/dev", "aliases": [], "type": IMAGE_TYPE}, None, True, "newer than the catalogue"),
        ({"id": "maker/dev"}, None, True, "newer than the catalogue"),
        ({"id": "maker/dev", "type": "openai/chat-completions"}, None, False, "served for openai/chat-completions"),
        ({"id": "other", "aliases": None, "type": IMAGE_TYPE}, None, False, "is not known to the API"),
    ],
)
def test_an_id_unknown_to_the_catalogue_is_looked_up(row, known_as, can_make_images, sentence):
    found = look_up("maker/dev", listed=[None, row], retired=[])
    assert (found.known_as, found.can_make_images) == (known_as, can_make_images)
    assert sentence in found.sentence


def test_a_looked_up_id_may_have_been_retired():
    gone = {"id": "maker/dev", "aliases": [], "status": "withdrawn", "replaced_by": "flux/dev"}
    found = look_up("maker/dev", listed=[], retired=[gone])
    assert (found.known_as, found.can_make_images, found.health.successor) == (None, False, "flux/dev")
    assert found.sentence == "maker/dev is withdrawn; use flux/dev"
    renamed = look_up("maker/dev", listed=[], retired=[{**gone, "status": "superseded"}])
    assert (renamed.known_as, renamed.can_make_images) == ("flux/dev", True)
