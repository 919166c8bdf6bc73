from __future__ import annotations

import base64
import json
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.api.responses import GeneratedImage, read_generation
from airflow_provider_imagen.exceptions import (
    ImagenError,
    InvalidRequestError,
    LostAnswerError,
    UnreadableResponseError,
)

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
ENCODED = base64.b64encode(IMAGE).decode()
IMAGE_URL = "https://cdn.test/a.png"


def read(answer, **headers):
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return read_generation(
        status=200, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=body
    )


def read_images(answer):
    return read(answer).pictures


# --- entry formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["url", "image_url", "image"])
def test_a_url_is_found_under_each_of_its_keys(name):
    assert read_images({"data": [{name: IMAGE_URL}]}) == (GeneratedImage(url=IMAGE_URL),)


@pytest.mark.parametrize("name", ["b64_json", "base64", "image_base64", "b64"])
def test_base64_is_found_under_each_of_its_keys(name):
    assert read_images({"data": [{"url": None, name: ENCODED}]}) == (GeneratedImage(data=IMAGE),)


@pytest.mark.parametrize("name", ["url", "image_url", "image", "b64_json"])
def test_a_data_uri_is_decoded_under_any_key(name):
    assert read_images({"images": [{name: f"data:image/png;base64,{ENCODED}"}]}) == (GeneratedImage(data=IMAGE),)


def test_a_data_uri_without_base64_is_decoded_too():
    assert read_images({"data": ["data:image/svg+xml,%3Csvg/%3E"]}) == (GeneratedImage(data=b"<svg/>"),)


@pytest.mark.parametrize("entry", [IMAGE_URL, {"image_url": {"url": IMAGE_URL}}, {"url": f" {IMAGE_URL}\n"}])
def test_a_url_may_be_bare_nested_or_padded_with_whitespace(entry):
    assert read_images({"data": [entry]}) == (GeneratedImage(url=IMAGE_URL),)


def test_base64_may_be_wrapped_unpadded_or_url_safe():
    lines = "\n".join(ENCODED[place : place + 76] for place in range(0, len(ENCODED), 76)).rstrip("=")
    assert read_images({"data": [{"b64_json": lines}]}) == (GeneratedImage(data=IMAGE),)
    assert read_images({"data": [{"b64_json": base64.urlsafe_b64encode(IMAGE).decode()}]}) == (
        GeneratedImage(data=IMAGE),
    )


def test_base64_replaces_an_unusable_url():
    assert read_images({"data": [{"url": "ftp://x/a.png", "b64_json": ENCODED}]}) == (GeneratedImage(data=IMAGE),)


@pytest.mark.parametrize(
    "entry",
    [
        {"url": "ftp://cdn.test/a.png"},
        {"url": "file:///etc/passwd"},
        {"url": "https://[bad"},
        {"url": "https://"},
        {"url": "https://cdn.test/\ud800"},
        {"url": "https://cdn.test/a\nb"},
        {"url": "data:image/png;base64"},
        {"url": "data:image/png;base64,"},
        {"url": "data:,\ud800"},
        {"url": 5},
        {"image_url": {"href": IMAGE_URL}},
        {"b64_json": "%%%"},
        {"b64_json": "ä"},
        {"b64_json": "A"},
        {"b64_json": ["x"]},
        {"href": IMAGE_URL},
        ["nested"],
        7,
        True,
    ],
)
def test_an_unreadable_image_is_reported_rather_than_dropped(entry):
    good, broken = read_images({"data": [{"url": IMAGE_URL}, entry]})

    assert good.url == IMAGE_URL
    assert broken.broken
    assert (broken.url, broken.data) == (None, None)


@pytest.mark.parametrize("entry", [None, {}, {"url": None, "b64_json": None}, {"url": "", "mime_type": "image/png"}])
def test_an_empty_entry_is_not_an_image(entry):
    assert read_images({"data": [entry, {"url": IMAGE_URL}, entry]}) == (GeneratedImage(url=IMAGE_URL),)


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data", "images", "output"])
def test_images_are_found_under_every_list_key(name):
    assert read_images({name: [{"url": IMAGE_URL}]}) == (GeneratedImage(url=IMAGE_URL),)


def test_the_2024_choices_format_is_read():
    assert read_images({"status": "finished", "output": {"choices": [{"image_base64": ENCODED}]}}) == (
        GeneratedImage(data=IMAGE),
    )


@pytest.mark.parametrize("single", [IMAGE_URL, {"url": IMAGE_URL}])
def test_a_single_image_need_not_be_in_a_list(single):
    assert read_images({"data": single}) == (GeneratedImage(url=IMAGE_URL),)


def test_two_lists_of_the_same_images_count_once():
    found = read_images({"images": [{"url": "data:image/png;base64," + ENCODED}], "data": [{"b64_json": ENCODED}]})

    assert found == (GeneratedImage(data=IMAGE),)


@pytest.mark.parametrize(
    ("data", "images"),
    [
        (None, [{"url": IMAGE_URL}]),
        ([], [{"url": IMAGE_URL}]),
        ([{"url": None}], [{"url": IMAGE_URL}]),
        ([{"b64_json": "%%%"}], [{"url": IMAGE_URL}]),
        ([{"url": "https://cdn.test/1"}], [{"url": IMAGE_URL}, {"url": IMAGE_URL + "?2"}]),
    ],
)
def test_of_two_lists_the_one_with_more_usable_images_wins(data, images):
    found = read_images({"data": data, "images": images})

    assert [image.url for image in found] == [image["url"] for image in images]


# --- image metadata ---------------------------------------------------------------------------------------------------


def test_an_images_own_prompt_and_seed_win_over_the_responses():
    own, common = read_images(
        {
            "prompt": "all",
            "seed": 2**70,
            "data": [
                {"url": IMAGE_URL, "prompt": "mine", "seed": 0},
                {"url": IMAGE_URL, "revised_prompt": "better", "prompt": "x"},
            ],
        }
    )

    assert (own.prompt, own.seed) == ("mine", 0)
    assert (common.prompt, common.seed) == ("better", 2**70)


@pytest.mark.parametrize(
    ("seed", "read_as"), [(7.0, 7), (7.5, None), (True, None), ("7", None), (1e400, None), (None, None)]
)
def test_a_seed_is_a_whole_number_or_unknown(seed, read_as):
    assert read_images({"data": [{"url": IMAGE_URL}], "seed": seed})[0].seed == read_as


def test_a_lone_surrogate_in_a_prompt_is_replaced():
    """Because no file could store it."""
    (image,) = read_images({"data": [{"url": IMAGE_URL, "prompt": "a \ud83e fox \U0001f98a"}]})

    assert image.prompt == "a \ufffd fox \U0001f98a"


def test_flags_match_images_by_position():
    first, second, third = read_images(
        {
            "has_nsfw_concepts": [False, True, "yes"],
            "data": [{"url": IMAGE_URL}, {"url": IMAGE_URL}, {"url": IMAGE_URL}],
        }
    )

    assert (first.withheld, second.withheld, third.withheld) == (False, True, False)


def test_a_flagged_and_missing_image_counts_as_withheld():
    assert read_images({"has_nsfw_concepts": [True, True], "images": [None, {"url": None}]}) == (
        GeneratedImage(withheld=True),
        GeneratedImage(withheld=True),
    )


# --- complete responses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [{"data": None}, {"data": []}, {"images": [None]}, {"output": {"choices": []}}])
def test_an_empty_list_is_a_response_without_images(answer):
    generation = read(answer, x_aimlapi_usd_spent="0.1", X_Inference_Id="inf-1")

    assert generation.pictures == ()
    assert (generation.usd, generation.inference_id) == (Decimal("0.1"), "inf-1")


@pytest.mark.parametrize(
    "body", [b"", b"  ", b'{"data": [{"url": "htt', b"<!DOCTYPE html><html>", b"\xff\xfe\xfa", b"[" * 9999]
)
def test_a_body_that_is_not_complete_json_is_lost_but_keeps_its_cost_and_id(body):
    with pytest.raises(LostAnswerError) as caught:
        read(body, x_aimlapi_usd_spent="0.1", x_inference_id="inf-1")

    assert (caught.value.status, caught.value.usd, caught.value.inference_id) == (200, 0.1, "inf-1")


@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b'"done"', b"{}", b'{"id": "job-1", "status": "queued"}'])
def test_json_in_an_unknown_format_is_unreadable_but_keeps_its_cost_and_id(body):
    with pytest.raises(UnreadableResponseError) as caught:
        read(body, x_aimlapi_credits_used="200000", x_inference_id="inf-1")

    assert (caught.value.status, caught.value.usd, caught.value.inference_id) == (200, 0.1, "inf-1")


@pytest.mark.parametrize(
    ("error", "kind", "shown"),
    [
        ({"message": "blocked", "code": "moderation"}, "moderation", "blocked"),
        ({"message": "blocked", "type": "moderation"}, "moderation", "blocked"),
        ("blocked", None, "blocked"),
        ({"reason": "x"}, None, "no reason given"),
        ([1], None, "no reason given"),
    ],
)
def test_an_error_instead_of_images_is_an_invalid_request(error, kind, shown):
    with pytest.raises(InvalidRequestError, match=shown) as caught:
        read({"error": error, "data": None})

    assert caught.value.kind == kind


def test_images_next_to_an_error_are_kept():
    assert read_images({"error": {"message": "one of two failed"}, "data": [{"url": IMAGE_URL}]}) == (
        GeneratedImage(url=IMAGE_URL),
    )


# --- arbitrary input --------------------------------------------------------------------------------------------------

_NAMES = ["data", "images", "output", "choices", "url", "b64_json", "image", "image_url", "prompt", "seed", "error"]
_NAMES += ["meta", "usage", "usd_spent", "credits_used", "has_nsfw_concepts", "content_violation", "message", "code"]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats(allow_nan=True)
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from([IMAGE_URL, ENCODED, f"data:image/png;base64,{ENCODED}", "data:", "%%%", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_NAMES) | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
headers = st.dictionaries(
    st.sampled_from(["x-inference-id", "X-AIMLAPI-USD-Spent", "x-aimlapi-credits-used", "other"]),
    st.text(max_size=10) | st.sampled_from(["0.1", "1e999999999", "-1", "NaN", "1e-999999999", "٣"]),
)


@settings(max_examples=300, deadline=None)
@given(status=st.integers(200, 299), headers=headers, body=st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_our_errors(status, headers, body):
    check_any_input(status, headers, body)


@settings(max_examples=600, deadline=None)
@given(headers=headers, answer=json_values)
def test_arbitrary_json_raises_only_our_errors(headers, answer):
    check_any_input(200, headers, json.dumps(answer).encode())


@pytest.mark.parametrize("depth", [500, 900, 990, 5_000, 100_000])
@pytest.mark.parametrize("name", ["data", "error", "meta", "image_url"])
def test_deep_nesting_raises_only_our_errors(name, depth):
    check_any_input(200, {}, (f'{{"{name}": ' * depth + "null" + "}" * depth).encode())
    check_any_input(200, {}, b'{"data": [{"url": ' + b"[" * depth + b"]" * depth + b"}]}")


@pytest.mark.parametrize("digits", [400, 4_000, 400_000])
def test_huge_numbers_raise_only_our_errors(digits):
    number = "9" * digits
    body = f'{{"data": [{{"url": "{IMAGE_URL}", "seed": {number}}}], "usage": {{"usd_spent": {number}}}}}'
    check_any_input(200, {}, body.encode())


def check_any_input(status, headers, body):
    error = generation = None
    try:
        generation = read_generation(status=status, headers=headers, body=body, model="m", client_request_id="c")
    except ImagenError as raised:
        error = raised
    if generation is None:
        assert (error.status, error.model, error.client_request_id) == (status, "m", "c")
        assert str(error).isprintable()
        assert error.usd is None or 0 <= error.usd < float("inf")
        return
    assert generation.usd is None or 0 <= float(generation.usd) < float("inf")
    for image in generation.pictures:
        assert sum(map(bool, (image.url, image.data, image.broken))) == 1 or image.withheld
        (image.url or "").encode()
        (image.prompt or "").encode()


entry_values = st.one_of(
    st.builds(lambda number: {"url": f"https://cdn.test/{number}.png"}, st.integers(0, 99)),
    st.builds(lambda data: {"b64_json": base64.b64encode(data).decode()}, st.binary(min_size=1, max_size=40)),
    st.builds(
        lambda data: {"url": f"data:;base64,{base64.b64encode(data).decode()}"}, st.binary(min_size=1, max_size=9)
    ),
    st.builds(lambda junk: {"b64_json": f"%{junk}"}, st.text(max_size=5)),
    st.builds(lambda junk: {"url": f"gopher:{junk}"}, st.text(max_size=5)),
    st.builds(lambda junk: {"somewhere_else": junk}, st.text(max_size=5)),
    st.integers(min_value=1),
)


@settings(max_examples=300, deadline=None)
@given(entries=st.lists(entry_values, min_size=1, max_size=8), name=st.sampled_from(["data", "images", "output"]))
@example(entries=[{"somewhere_else": ""}], name="data")
def test_every_entry_becomes_an_image_or_is_reported_broken_in_order(entries, name):
    found = read_images({name: entries})

    assert len(found) == len(entries)
    for image, entry in zip(found, entries, strict=True):
        if isinstance(entry, dict) and str(entry.get("url")).startswith("https:"):
            assert image.url == entry["url"]
        elif isinstance(entry, dict) and ";base64," in str(entry.get("url")):
            assert image.data == base64.b64decode(entry["url"].partition(",")[2])
        elif isinstance(entry, dict) and not str(entry.get("b64_json", "%")).startswith("%"):
            assert image.data == base64.b64decode(entry["b64_json"])
        else:
            assert image.broken


@pytest.mark.parametrize(
    ("headers", "answer", "named"),
    [
        ({}, {}, None),
        ({"X-AIMLAPI-Model": "a/b"}, {"meta": {"model": "c/d"}, "model": "e/f"}, "a/b"),
        ({}, {"meta": {"model": "c/d"}, "model": "e/f"}, "c/d"),
        ({}, {"meta": None, "model": "e/f"}, "e/f"),
        ({"x-aimlapi-model": ""}, {"meta": {"model": None}, "model": 5}, None),
    ],
)
def test_the_responding_model_is_recorded_separately_from_the_requested_one(headers, answer, named):
    body = json.dumps({"data": [{"url": IMAGE_URL}], **answer}).encode()
    generation = read_generation(status=200, headers=headers, body=body, model="asked/model")
    assert (generation.model, generation.answered_model) == ("asked/model", named)


def test_the_responding_models_name_never_shows_the_key():
    body = json.dumps({"data": [{"url": IMAGE_URL}], "model": "my-secret"}).encode()
    assert read_generation(status=200, headers={}, body=body, api_key="my-secret").answered_model == "***"


URL = "https://cdn.test/a.png"
BODY = json.dumps({"data": [{"url": URL}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        b"\x00" + BODY,
        b"\x1f" + BODY,
        b"\xff\xfe" + BODY,
        b"Warning: slow\n" + BODY,
        b"data: " + BODY,
        BODY + b"\n\n0\r\n",
        BODY[:-3],
        b'{"images": [{"image_url": "' + URL.encode() + b'", "prompt": "a "quoted" cat"}]}',
        b'{"request": {"image": {"url": "https://cdn.test/in.png"}, "prompt": "a "b" c"}, "data": [{"url": "'
        + URL.encode()
        + b'"}]}',
    ],
)
def test_an_image_is_found_in_a_damaged_body(body):
    generation = read_generation(status=200, headers={}, body=body)
    assert [image.url for image in generation.pictures] == [URL]


@pytest.mark.parametrize(
    "body",
    [
        b'<html><script>var page = {"data": [{"url": "https://x.test/a.png"}]}</script></html>',
        b"502 Bad Gateway",
        b'{"data": [{"url": "https://cdn.te',
        b'{"detail": "a "quoted" word", "url": "https://docs.test/errors"}',
    ],
)
def test_a_body_without_a_complete_image_is_a_lost_response(body):
    with pytest.raises(LostAnswerError):
        read_generation(status=200, headers={}, body=body)


def test_raw_control_characters_in_base64_are_ignored():
    body = b'{"data": [{"b64_json": "QU\x01JD"}]}'
    assert [image.data for image in read_generation(status=200, headers={}, body=body).pictures] == [b"ABC"]


@pytest.mark.parametrize("seed", [10**40, -(10**40), 1e300])
def test_an_absurd_seed_is_ignored(seed):
    body = json.dumps({"data": [{"url": URL, "seed": seed}]}).encode()
    assert [image.seed for image in read_generation(status=200, headers={}, body=body).pictures] == [None]
