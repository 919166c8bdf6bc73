from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
import requests
from PIL import Image

from airflow_provider_imagen.sandbox import Fault, Sandbox
from airflow_provider_imagen.sandbox.control_page import (
    CHARACTERS_SHOWN,
    CHARGES_SHOWN,
    FAULT_BUTTONS,
    FAULTS_SHOWN,
    IMAGES_SHOWN,
)
from airflow_provider_imagen.sandbox.fault_syntax import parse_fault
from airflow_provider_imagen.sandbox.faults import KINDS

BUTTONS = [fault for faults in FAULT_BUTTONS.values() for fault in faults.values()]


class Html(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def show(sandbox, **headers):
    answer = requests.get(f"{sandbox.url}/", headers=headers, timeout=10)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Html(answer.text)


def submit(sandbox, form, *, url=None, **headers):
    headers = {"Origin": sandbox.url} | {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(f"{url or sandbox.url}/", data=form, headers=headers, allow_redirects=False, timeout=10)


def armed(sandbox):
    return [Fault.from_json(each) for each in requests.get(f"{sandbox.url}/_sandbox/faults", timeout=10).json()]


# What it shows.


def test_it_shows_the_connection_as_the_command_prints_it(sandbox):
    assert sandbox.connection_line in show(sandbox).texts
    assert sandbox.url in sandbox.connection_line
    assert sandbox.api_key in sandbox.connection_line


def test_it_shows_charges_and_images_newest_first(sandbox, generate):
    for prompt in ("a fox", "a cat"):
        urls = generate(prompt=prompt, headers={"X-Client-Request-Id": f"id of {prompt}".replace(" ", "-")}).json()
        last = urls["data"][0]["url"]
    page = show(sandbox)

    assert [text for text in page.texts if text in ("a fox", "a cat")] == ["a cat", "a fox"] * 2
    assert [text for text in page.texts if text.startswith("id-of")] == ["id-of-a-cat", "id-of-a-fox"]
    assert page.texts.count("$0.042") == 2
    assert "$0.084" in page.texts
    assert "$99.916" in page.texts
    assert page.named("img")[1]["src"] == last.replace(sandbox.cdn_url, "/_sandbox/thumbnails")
    assert last in [link["href"] for link in page.named("a")]


def test_it_is_not_a_request_of_the_api(sandbox):
    sandbox.add_fault(Fault("status", path="/", times=None))
    show(sandbox)
    for link in show(sandbox).named("link"):
        assert requests.get(f"{sandbox.url}{link['href']}", timeout=10).ok
    requests.get(f"{sandbox.url}/_sandbox/static/page.html", timeout=10)

    assert sandbox.seen() == []


def test_only_a_bounded_part_of_what_there_is_is_shown(sandbox, generate):
    for number in range(CHARGES_SHOWN + 2):
        assert generate(prompt=f"{number} " + "x" * 350).ok
    for _ in range(FAULTS_SHOWN + 2):
        sandbox.add_fault(Fault("status", message="y" * 5000))
    answer = requests.get(f"{sandbox.url}/", timeout=10)
    page = Html(answer.text)

    assert len(answer.content) < 100_000
    assert max(map(len, page.texts)) < 2 * CHARACTERS_SHOWN
    assert len(page.named("img")) == 1 + IMAGES_SHOWN
    assert f"The newest {IMAGES_SHOWN} of {CHARGES_SHOWN + 2}." in page.texts
    assert f"The newest {CHARGES_SHOWN} of {CHARGES_SHOWN + 2}." in page.texts
    assert f"The first {FAULTS_SHOWN} of {FAULTS_SHOWN + 2}." in page.texts


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</style><style>*{display:none}",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_everything_from_requests_is_shown_as_text(sandbox, generate, text):
    generate(prompt=text)
    sandbox.add_fault(Fault("status", prompt=text, message=text))
    page = show(sandbox)

    assert page.texts.count(text) == 2
    assert len(page.named("img")) == 2
    assert page.named("script") == page.named("style") == page.named("b") == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith(("on", "style"))]

    rejected = submit(sandbox, {"fault": text})
    assert rejected.status_code == 400
    page = Html(rejected.text)
    (typed,) = [field["value"] for field in page.named("input")]
    assert typed == text
    assert page.named("script") == []


@pytest.mark.parametrize("prompt", ["half a pair \ud83d", "nul \x00", "right to left \u202e", "line\nbreak"])
def test_odd_characters_do_not_break_the_page(sandbox, generate, prompt):
    assert generate(prompt=prompt).ok

    assert requests.get(f"{sandbox.url}/", timeout=10).ok


def test_it_allows_the_browser_nothing_it_does_not_need(sandbox, generate):
    generate()
    answer = requests.get(f"{sandbox.url}/", timeout=10)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))

    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "img-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    page = Html(answer.text)
    loaded = [attributes["src"] for attributes in page.named("img")] + [link["href"] for link in page.named("link")]
    assert all(source.startswith("/_sandbox/") for source in loaded)
    assert {form["action"] for form in page.named("form")} == {"/"}
    assert page.named("script") == page.named("style") == []


# Thumbnails.


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_thumbnails_are_small_jpegs_whatever_the_image_is(sandbox, generate, output_format):
    sandbox.configure(picture_scale=1)
    generate(model="openai/gpt-image-2", output_format=output_format, prompt="a red fox")
    source = show(sandbox).named("img")[1]["src"]
    answer = requests.get(f"{sandbox.url}{source}", timeout=10)

    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 400)


def test_a_thumbnail_is_not_a_download(sandbox, generate):
    sandbox.add_fault(Fault("signed_links"))
    sandbox.add_fault(Fault("cut_image"))
    generate()
    source = sandbox.url + show(sandbox).named("img")[1]["src"]
    assert requests.get(source, timeout=10).ok

    assert [fault.kind for fault in armed(sandbox)] == ["cut_image"]
    assert [request.method for request in sandbox.seen()] == ["POST"]
    sandbox.reset()
    assert requests.get(source, timeout=10).status_code == 404


# Its forms.


@pytest.mark.parametrize("fault", BUTTONS)
def test_each_button_injects_its_fault(sandbox, fault):
    assert fault in [button.get("value") for button in show(sandbox).named("button")]
    answer = submit(sandbox, {"fault": fault})

    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert armed(sandbox) == [parse_fault(fault)]
    assert fault in show(sandbox).texts


def test_the_next_request_after_a_button_fails(sandbox, generate):
    submit(sandbox, {"fault": FAULT_BUTTONS["Next generation"]["Error 500"]})

    assert [generate().status_code, generate().status_code] == [500, 200]


def test_any_fault_can_be_typed(sandbox):
    assert submit(sandbox, {"fault": " status:status=503,message=No & no, times=2 "}).status_code == 303
    assert armed(sandbox) == [Fault("status", status=503, message="No & no, times=2")]


def test_a_typed_fault_that_is_invalid_is_explained(sandbox):
    for typed, explanation in (
        ("status:status=42", "status=42; allowed: 100 to 599"),
        ("statsu", f"kind='statsu'; allowed: {', '.join(KINDS)}; did you mean status?"),
    ):
        answer = submit(sandbox, {"fault": typed})
        assert answer.status_code == 400
        assert explanation in Html(answer.text).texts
    assert armed(sandbox) == []


def test_faults_can_be_cleared_and_the_sandbox_reset(sandbox, generate):
    generate()
    sandbox.add_fault(Fault("reset"))

    assert submit(sandbox, {"action": "clear"}).status_code == 303
    assert (armed(sandbox), len(sandbox.ledger())) == ([], 1)
    assert submit(sandbox, {"action": "reset"}).status_code == 303
    assert sandbox.ledger() == []


@pytest.mark.parametrize("form", [{}, {"action": "explode"}, {"fault": ""}, b"\xff=%ff&fault", b"&" * 10_000])
def test_a_form_without_a_meaning_does_nothing(sandbox, generate, form):
    generate()
    answer = submit(sandbox, form, Content_Type="application/x-www-form-urlencoded")

    assert answer.status_code in (303, 400)
    assert (armed(sandbox), len(sandbox.ledger())) == ([], 1)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "imagen.localhost"])
def test_its_forms_work_under_each_local_name(sandbox, host):
    authority = f"{host}:{sandbox.url.rpartition(':')[2]}"

    assert submit(sandbox, {"fault": "reset"}, Host=authority, Origin=f"http://{authority}").status_code == 303


# Forms of other pages.


@pytest.mark.parametrize("form", [{"fault": "reset"}, {"action": "clear"}, {"action": "reset"}])
@pytest.mark.parametrize(
    "origin", [None, "null", "", "https://evil.example", "http://localhost:3000", "http://127.0.0.1", "https://{host}"]
)
@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "application/json"],
)
def test_forms_of_other_pages_change_nothing(sandbox, generate, form, origin, kind):
    generate()
    sandbox.add_fault(Fault("slow"))
    host = sandbox.url.removeprefix("http://")
    answer = submit(sandbox, form, Content_Type=kind, Origin=origin if origin is None else origin.format(host=host))

    assert answer.status_code == 403
    assert (armed(sandbox), len(sandbox.ledger())) == ([Fault("slow")], 1)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_only_a_post_changes_anything(sandbox, method):
    requests.request(method, f"{sandbox.url}/?fault=reset&action=reset", headers={"Origin": sandbox.url}, timeout=10)

    assert armed(sandbox) == []


def test_a_page_whose_name_was_rebound_to_this_machine_is_rejected(sandbox):
    assert submit(sandbox, {"fault": "reset"}, Host="evil.example", Origin="http://evil.example").status_code == 403
    with Sandbox(host="0.0.0.0") as open_to_all:
        answer = submit(open_to_all, {"fault": "reset"}, Host="evil.example", Origin="http://evil.example")
        assert answer.status_code == 403
        assert armed(open_to_all) == []


def test_the_page_works_by_the_address_of_a_network_interface():
    with Sandbox(host="0.0.0.0") as open_to_all:
        headers = {"Host": "192.0.2.2:8765", "Origin": "http://192.0.2.2:8765"}
        assert submit(open_to_all, {"fault": "reset"}, **headers).status_code < 400
        assert len(armed(open_to_all)) == 1
        assert submit(open_to_all, {"fault": "reset"}, **headers | {"Origin": "http://192.0.2.3"}).status_code == 403


def test_json_that_is_nested_too_deeply_is_rejected(sandbox):
    body = '{"kind": ' + "[" * 100_000 + "]" * 100_000 + "}"
    for name in ("faults", "settings"):
        answer = requests.post(
            f"{sandbox.url}/_sandbox/{name}", data=body, headers={"Content-Type": "application/json"}, timeout=10
        )
        assert (answer.status_code, answer.json()) == (400, {"error": "The JSON is nested too deeply"})
