import base64
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.api.data_uris import DataUri, read_base64, read_data_uri
from airflow_provider_imagen.api.responses import read_generation
from airflow_provider_imagen.catalogue.input_images import reference_kind
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.exceptions import InvalidArgumentsError

IMAGE = bytes(range(256)) * 2 + b"\xfb\xff"  # its base64 has +, / and padding
TEXT = base64.b64encode(IMAGE).decode()
assert {"+", "/", "="} <= set(TEXT)
PLAIN = f"data:image/png;base64,{TEXT}"
QUOTED = TEXT.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
LINES = base64.encodebytes(IMAGE).decode()

SPELLINGS = {
    "plain": PLAIN,
    "upper-case scheme": f"DATA:image/png;base64,{TEXT}",
    "upper-case head": f"Data:IMAGE/PNG;BASE64,{TEXT}",
    "a name": f"data:image/png;name=a.png;base64,{TEXT}",
    "a quoted name with a comma": f'data:image/png;name="a, b.png";base64,{TEXT}',
    "a character set": f"data:image/png;charset=utf-8;base64,{TEXT}",
    "a parameter after base64": f"data:image/png;base64;name=a.png,{TEXT}",
    "blanks in the head": f"data: image/png ; base64 ,{TEXT}",
    "a blank after the comma": f"data:image/png;base64, {TEXT}",
    "lines": f"data:image/png;base64,{LINES}",
    "lines of Windows": "data:image/png;base64," + LINES.replace("\n", "\r\n"),
    "quoted lines": "data:image/png;base64," + LINES.replace("\n", "%0A"),
    "blanks around": f"  {PLAIN}\n",
    "no padding": PLAIN.rstrip("="),
    "URL-safe": "data:image/png;base64," + base64.urlsafe_b64encode(IMAGE).decode(),
    "URL-safe without padding": "data:image/png;base64," + base64.urlsafe_b64encode(IMAGE).decode().rstrip("="),
    "percent-encoded": f"data:image/png;base64,{QUOTED}",
    "percent-encoded head": f"data:image%2Fpng;base64,{TEXT}",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_gives_the_same_bytes_in_requests_and_responses(spelling):
    arguments = {"model": "flux/dev/image-to-image", "prompt": "a", "image_url": spelling.strip()}
    (request,) = build_requests(arguments, can_store=True)
    assert request.body["image_url"] == PLAIN
    arguments = {"model": "blackforestlabs/flux-2-edit", "prompt": "a", "input_images": [spelling.strip()]}
    assert build_requests(arguments, can_store=True)[0].body["image_urls"] == [PLAIN]
    unknown = {"model": "some/new-model", "prompt": "a", "image_urls": [spelling.strip(), "https://h.example/a.png"]}
    (request,) = build_requests(unknown, can_store=True)
    assert request.body["image_urls"] == [PLAIN, "https://h.example/a.png"]
    answer = json.dumps({"data": [{"url": spelling}]}).encode()
    assert read_generation(status=200, headers={}, body=answer).pictures[0].data == IMAGE
    assert reference_kind(spelling.strip(), field="image_url") == "data"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data:image/png;base64", "without data"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,%20%0A", "empty"),
        ("data:image/png;base64,AAAA!!!!", "cannot be decoded"),
        ("data:image/png;base64,AAAAA", "cannot be decoded"),
        ("data:image/png;base64,AA==AA==", "cannot be decoded"),
        ("data:,\ud800", "invalid characters"),
        ("data:,", "empty"),
    ],
)
def test_an_unreadable_data_uri_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_data_uri(text)
    with pytest.raises(InvalidArgumentsError, match="image_url="):
        build_requests({"model": "flux/dev/image-to-image", "prompt": "a", "image_url": text}, can_store=True)


@pytest.mark.parametrize("mime_type", ["text/html", "application/octet-stream", ""])
def test_only_images_may_go_into_a_request(mime_type):
    arguments = {"model": "flux/dev/image-to-image", "prompt": "a", "image_url": f"data:{mime_type};base64,{TEXT}"}
    with pytest.raises(InvalidArgumentsError, match="a data URI"):
        build_requests(arguments, can_store=True)


def test_data_without_base64_is_percent_decoded():
    assert read_data_uri("data:image/svg+xml,%3Csvg/%3E") == DataUri("image/svg+xml", b"<svg/>", is_base64=False)
    assert read_data_uri("data:,a%2Cb,c") == DataUri("text/plain", b"a,b,c", is_base64=False)


@given(st.binary(min_size=1), st.sampled_from(["image/png", "image/svg+xml"]))
def test_a_written_data_uri_can_be_read_back(data, mime_type):
    uri = DataUri(mime_type, data, is_base64=True)
    assert read_data_uri(str(uri)) == uri
    assert read_base64(base64.urlsafe_b64encode(data).decode().rstrip("=")) == data


@pytest.mark.parametrize("text", ["x", '"', '"x"', '""', ";"])
def test_a_long_header_without_data_takes_little_memory(text):
    uri = "data:" + text * (5_000_000 // len(text))
    tracemalloc.start()
    with pytest.raises(ValueError, match="without data"):
        read_data_uri(uri)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert highest < 1_000_000
