from __future__ import annotations

import json

import pytest

from airflow_provider_imagen.api.json_body import find_string_fields, read_json, storable


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"a":"one\x01two\ttab"}', "one\x01two\ttab"),
        (b'{"a":"one\xff\xfetwo"}', "one\ufffd\ufffdtwo"),
        (b'{"a":"caf\xe9"}', "caf\ufffd"),
        (b'{"a":"C:\\docs \\x41 \\u12"}', "C:\\docs \\x41 \\u12"),
        (b'{"a":"whole: \\n \\\\d \\u00e9 \\/"}', "whole: \n \\d \u00e9 /"),
        (b'{"a":"null \\u0000 and raw \x00"}', "null \ufffd and raw \ufffd"),
        (b'{"a":"half \\ud83d, half \\udc31, whole \\ud83d\\udc31"}', "half \ufffd, half \ufffd, whole \U0001f431"),
        (b'\xef\xbb\xbf {"a":"behind a mark"}', "behind a mark"),
        (b'{"a":"first"}\n{"b":1}', "first"),
        (b'{"a":"first"}<!-- gateway -->', "first"),
        ('{"a":"é"}'.encode("utf-16"), "é"),
        ('{"a":"é"}'.encode("utf-32-le"), "é"),
    ],
)
def test_the_storable_part_of_damaged_text_is_kept(body, text):
    assert read_json(body)["a"] == text
    json.dumps(read_json(body)).encode()


def test_every_string_is_storable_at_any_depth():
    found = read_json(json.dumps({"a\0": [{"b": ["\0", 1, None, True, 0.5, "\ud800"]}, "c\0"]}).encode())
    assert found == {"a\ufffd": [{"b": ["\ufffd", 1, None, True, 0.5, "\ufffd"]}, "c\ufffd"]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"\x00" * 100,
        b'{"a": "cut of',
        b'{"a": 1',
        b"502 Bad Gateway",
        b"<html>{}</html>",
        b"null and more",
        b"[1] [2]",
        b"{'a': 1}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_anything_but_a_complete_document_is_rejected(body):
    with pytest.raises(ValueError, match=r"."):
        read_json(body)


def test_storable_text_is_unchanged():
    for text in ("plain", "é\U0001f431", "\t\n\x01\x7f"):
        assert storable(text) is text or storable(text) == text


def test_string_fields_are_found_in_a_damaged_document():
    body = (
        b'{"data":[{"prompt":"a "quoted" cat","url":"https:\\/\\/x.test\\/a?b=1\\u0026c=2"},'
        b'{"b64_json" : "AAAA","url":null},{"thumbnail_url":"https://x.test/no","url":"https://x.test/cut'
    )
    assert find_string_fields(body, ("url", "b64_json")) == [
        ("url", "https://x.test/a?b=1&c=2"),
        ("b64_json", "AAAA"),
    ]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", [b'"url":"', b'"url":"\\', b'"url"  :', b"\\", b'\\"'])
def test_a_long_damaged_body_takes_linear_time(part):
    body = b"{" + part * 400_000  # in quadratic time, hours
    find_string_fields(body, ("url", "b64_json"))
    with pytest.raises(ValueError, match=r"."):
        read_json(body)
