from __future__ import annotations

import json
import logging
import shlex
import socket
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import MagicMock

import pytest
from airflow.sdk import BaseHook, Connection

from airflow_provider_imagen.api.client import ClientSettings
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    DownloadError,
    InvalidArgumentsError,
    LostAnswerError,
    ServerError,
    UnreadableResponseError,
    UnsafeAddressError,
)
from airflow_provider_imagen.hooks.connection import connection_settings
from airflow_provider_imagen.hooks.imagen import DEFAULT_MODEL, ImagenHook
from airflow_provider_imagen.sandbox import SANDBOX_API_KEY, Fault, embedded

KEY = "feedc0de" + "9" * 24
REAL = "https://api.aimlapi.com"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def make_hook(sandbox, monkeypatch):
    hooks = []

    def make(*, extra=None, **fields):
        fields = {"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key} | fields
        monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_TEST", json.dumps(fields | {"extra": extra or {}}))
        hooks.append(ImagenHook(imagen_conn_id="imagen_test"))
        return hooks[-1]

    yield make
    for hook in hooks:
        hook.close()


@pytest.fixture
def hook(make_hook):
    return make_hook()


def settings(extra=None, **fields):
    fields = {"password": KEY} | fields
    return connection_settings(
        Connection(conn_id="c", conn_type="imagen", extra=json.dumps(extra) if extra is not None else None, **fields)
    )


# --- connection to settings -------------------------------------------------------------------------------------------


def test_a_connection_with_only_a_key_uses_the_api_and_the_documented_defaults():
    assert settings() == ClientSettings(
        base_url=REAL, api_key=KEY, connect_timeout_seconds=10.0, read_timeout_seconds=300.0, verify=True
    )


@pytest.mark.parametrize(
    ("host", "port", "base_url"),
    [
        (None, None, REAL),
        ("  ", None, REAL),
        ("gateway.test", None, "gateway.test"),
        ("gateway.test", 8080, "https://gateway.test:8080"),
        ("gateway.test/v1", 8080, "https://gateway.test:8080/v1"),
        ("http://gateway.test", 8080, "http://gateway.test:8080"),
        ("http://gateway.test/v1", 8080, "http://gateway.test:8080/v1"),
        ("http://gateway.test:8080", 8080, "http://gateway.test:8080"),
        ("https://[::1]", 8080, "https://[::1]:8080"),
        ("::1", 8080, "https://[::1]:8080"),
        (None, 0, REAL),
        (None, 443, REAL),
        ("http://gateway.test:8080", 0, "http://gateway.test:8080"),
    ],
)
def test_host_and_port_make_the_base_url(host, port, base_url):
    assert settings(host=host, port=port).base_url == base_url


@pytest.mark.parametrize(
    ("uri", "base_url"),
    [
        ("imagen://:k@127.0.0.1:8765/http", "http://127.0.0.1:8765"),
        ("imagen://:k@gateway.test/https", "https://gateway.test"),
        ("imagen://:k@gateway.test/HTTPS", "https://gateway.test"),
        ("imagen://:k@gateway.test/images", "https://gateway.test/images"),
        ("imagen://:k@gateway.test:8443/images/v1", "https://gateway.test:8443/images/v1"),
        ("imagen://:k@[::1]:8765/http", "http://[::1]:8765"),
        ("imagen://:k@http%3A%2F%2Fgateway.test:8443/images", "http://gateway.test:8443/images"),
        ("imagen://:k@https%3A%2F%2Fgateway.test%2Fimages", "https://gateway.test/images"),
        ("imagen://:k@https%3A%2F%2Fgateway.test%2Fimages/images", "https://gateway.test/images"),
        ("imagen://:k@/https", REAL),
    ],
)
def test_a_connection_uri_gives_the_base_url(monkeypatch, uri, base_url):
    monkeypatch.setenv("AIRFLOW_CONN_BY_URI", uri)
    assert connection_settings(BaseHook.get_connection("by_uri")).base_url == base_url


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 8080},
        {"schema": "http"},
        {"schema": "images"},
        {"host": "http://gateway.test", "schema": "https"},
        {"host": "https://gateway.test", "schema": "http"},
        {"host": "http://gateway.test:9090", "port": 8080},
        {"host": "gateway.test:9090", "port": 8080},
        {"host": "https://[::1]:9090", "port": 8080},
        {"host": "https://gateway.test/a", "schema": "b"},
    ],
)
def test_fields_that_contradict_the_host_are_rejected_rather_than_dropped(fields):
    with pytest.raises(ValueError, match=r"'c'.*host"):
        settings(**fields)


@pytest.mark.parametrize("host", ["https://gateway.test/images?team=a", "https://gateway.test/#images"])
def test_a_query_in_the_host_is_rejected_rather_than_dropped(make_hook, host):
    with pytest.raises(ValueError, match="query"):
        make_hook(host=host).get_conn()


def test_a_missing_ca_bundle_from_the_environment_is_reported_at_once(make_hook, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    hook = make_hook(host="https://127.0.0.1:1")

    with pytest.raises(ValueError, match=r"REQUESTS_CA_BUNDLE='/no/such/bundle\.pem'"):
        hook.generate_images("a cat")
    assert hook.test_connection()[0] is False
    assert "REQUESTS_CA_BUNDLE" in hook.test_connection()[1]


@pytest.mark.parametrize("host", ["http://{address}", "http://{address}/v1", "http://{address}/"])
def test_the_host_is_called_with_or_without_v1(make_hook, sandbox, host):
    make_hook(host=host.format(address=sandbox.url.removeprefix("http://"))).get_key()

    assert [seen.path for seen in sandbox.seen()] == ["/v1/key"]


def test_host_and_port_may_be_separate(make_hook, sandbox):
    host, port = sandbox.url.rsplit(":", 1)

    assert make_hook(host=host, port=int(port)).get_key()["prefix"] == sandbox.api_key[:8]


@pytest.mark.parametrize("value", [2.5, "2.5", " 2.5 "])
def test_timeouts_may_be_numbers_or_text(value):
    found = settings({"connect_timeout": value, "read_timeout": value})

    assert (found.connect_timeout_seconds, found.read_timeout_seconds) == (2.5, 2.5)


@pytest.mark.parametrize("value", [None, ""])
def test_empty_fields_have_their_defaults(value):
    names = ("connect_timeout", "read_timeout", "sandbox", "verify", "model")

    assert settings(dict.fromkeys(names, value)) == settings()


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout"])
@pytest.mark.parametrize("value", [0, -1, "soon", "nan", "inf", "1_0", "1e1", "١٠", 86_401, 10**400, True, [], {}])
def test_an_invalid_timeout_is_reported_with_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=f"Extra {name}=.* seconds above 0, up to 86400"):
        settings({name: value})


@pytest.mark.parametrize(
    ("value", "verify"),
    [(True, True), ("true", True), ("1", True), (1, True), (False, False), ("False", False), ("no", False), (0, False)],
)
def test_tls_verification_can_be_switched_off(value, verify):
    assert settings({"verify": value}).verify is verify


def test_tls_verification_can_use_a_ca_bundle(tmp_path):
    (tmp_path / "ca.pem").touch()

    assert settings({"verify": f" {tmp_path / 'ca.pem'} "}).verify == str(tmp_path / "ca.pem")


@pytest.mark.parametrize("value", ["/no/such/bundle", 7, [], "maybe"])
def test_a_missing_ca_bundle_is_reported_with_what_is_allowed(value):
    with pytest.raises(ValueError, match=r"Extra verify=.* path of an existing CA bundle"):
        settings({"verify": value})


@pytest.mark.parametrize("value", ["maybe", 7, []])
def test_a_sandbox_extra_that_is_neither_true_nor_false_is_reported(value):
    with pytest.raises(ValueError, match=r"Extra sandbox=.*: true or false is allowed"):
        settings({"sandbox": value})


@pytest.mark.parametrize("password", [None, "", "  "])
def test_a_connection_without_a_key_says_where_to_enter_it(password):
    with pytest.raises(ValueError, match="'c' has no API key: enter it as the password"):
        settings(password=password)


def test_a_key_with_blanks_around_it_is_trimmed():
    assert settings(password=f" {KEY}\n").api_key == KEY


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sandbxo", "did you mean 'sandbox'?"),
        ("Sandbox", "did you mean 'sandbox'?"),
        ("use_sandbox", "did you mean 'sandbox'?"),
        ("timeout", "did you mean 'read_timeout'?"),
        (
            "dry_run",
            "its fields are connect_timeout, max_usd_per_day, max_usd_per_month, model, read_timeout, sandbox, verify",
        ),
        ("", "its fields are"),
    ],
)
def test_an_unknown_field_of_the_extra_is_rejected_before_any_request(make_hook, sandbox, name, hint):
    hook = make_hook(extra={"model": "flux/schnell", name: True})

    for call in (lambda: hook.generate_images("a cat"), lambda: hook.quote("a cat"), hook.get_conn, hook.get_balance):
        with pytest.raises(ValueError, match=f"'imagen_test': the extra has an unknown field '{name}'") as caught:
            call()
        assert hint in str(caught.value)
    assert hook.test_connection()[0] is False
    assert sandbox.seen() == []


def test_the_error_for_an_unknown_field_does_not_show_its_value():
    with pytest.raises(ValueError, match="unknown field 'api_key'") as caught:
        settings({"api_key": KEY})

    assert KEY not in str(caught.value)


@pytest.mark.parametrize("extra", ['{"sandbox": true,}', "sandbox=true", '["sandbox"]', '"sandbox"', "true", "7"])
def test_an_extra_that_is_not_a_json_object_is_rejected_rather_than_ignored(extra):
    """Airflow itself reads the first two as an empty extra, which would mean the paid API."""
    with pytest.raises(ValueError, match="Connection 'c': the extra is not"):
        connection_settings(Connection(conn_id="c", conn_type="imagen", password=KEY, extra=extra))


@pytest.mark.parametrize("conn_type", ["openai", "http", "aws", "Imagen"])
def test_the_key_of_another_service_is_never_sent_to_the_api(make_hook, sandbox, conn_type):
    hook = make_hook(conn_type=conn_type, password=KEY)

    with pytest.raises(ValueError, match=f"'imagen_test' has the type '{conn_type.lower()}'|'{conn_type}'"):
        hook.generate_images("a cat")
    assert hook.test_connection()[0] is False
    assert sandbox.seen() == []


@pytest.mark.parametrize("conn_type", ["imagen", "generic", "", None])
def test_a_connection_without_a_particular_type_is_accepted(conn_type):
    connection = Connection(conn_id="c", conn_type=conn_type, password=KEY)

    assert connection_settings(connection).api_key == KEY


def test_json_without_a_type_is_accepted(make_hook, sandbox, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_UNTYPED", json.dumps({"host": sandbox.url, "password": sandbox.api_key}))

    assert ImagenHook("untyped").test_connection()[0] is True


def test_the_repr_of_settings_never_shows_the_key():
    assert KEY not in repr(settings())


# --- the sandbox ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, KEY])
@pytest.mark.parametrize("value", [True, "true", "on", 1])
def test_the_embedded_sandbox_needs_no_key_and_never_gets_one(password, value):
    found = settings({"sandbox": value}, password=password)

    assert (found.base_url, found.api_key) == (embedded().url, SANDBOX_API_KEY)


def test_the_host_may_name_a_sandbox_elsewhere():
    found = settings({"sandbox": True}, host="http://10.0.0.5", port=8080, password=None)

    assert (found.base_url, found.api_key) == ("http://10.0.0.5:8080", SANDBOX_API_KEY)
    assert settings({"sandbox": True}, host="http://10.0.0.5").api_key == KEY


@pytest.mark.parametrize("host", [REAL, "api.aimlapi.com", "https://API.aimlapi.com/v1"])
def test_sandbox_together_with_the_real_api_is_rejected(host):
    with pytest.raises(ValueError, match="Extra sandbox=True"):
        settings({"sandbox": True}, host=host)


def test_the_embedded_sandbox_generates_images(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SANDBOX_ONLY", json.dumps({"conn_type": "imagen", "extra": {"sandbox": True}}))
    hook = ImagenHook("sandbox_only")

    (generation,) = hook.generate_images("a red fox", model="google/imagen-4.0-fast-generate-001")

    assert hook.download(generation.urls[0]).startswith(b"\x89PNG")
    hook.close()


# --- generating -------------------------------------------------------------------------------------------------------


def test_the_connections_model_is_the_default(make_hook, sandbox):
    assert make_hook().default_model == DEFAULT_MODEL
    assert make_hook(extra={"model": "  "}).default_model == DEFAULT_MODEL
    assert make_hook(extra={"model": 7}).default_model == DEFAULT_MODEL
    hook = make_hook(extra={"model": " google/imagen-4.0-fast-generate-001 "})
    assert hook.default_model == "google/imagen-4.0-fast-generate-001"

    hook.generate_images("a red fox")

    assert sandbox.ledger()[0].model == "google/imagen-4.0-fast-generate-001"


def test_arguments_are_sent_under_the_apis_names(hook, sandbox):
    (generation,) = hook.generate_images(
        "a red fox", num_images=2, aspect_ratio="16:9", seed=7, parameters={"person_generation": "dont_allow"}
    )

    (seen,) = sandbox.seen("/v1/images/generations")
    sent = {
        "prompt": "a red fox",
        "num_images": 2,
        "aspect_ratio": "16:9",
        "seed": 7,
        "person_generation": "dont_allow",
    }
    assert sent.items() <= seen.json.items()
    assert len(generation.urls) == 2
    assert generation.usd == sandbox.ledger()[0].usd
    assert seen.client_request_id == generation.client_request_id


def test_an_argument_that_is_left_out_does_not_undo_its_parameter(hook, sandbox):
    hook.generate_images(parameters={"prompt": "a red fox", "num_images": 2, "seed": 7})

    (seen,) = sandbox.seen("/v1/images/generations")
    assert (seen.json["prompt"], seen.json["num_images"], seen.json["seed"]) == ("a red fox", 2, 7)


def test_a_wrong_argument_is_rejected_before_anything_is_sent(hook, sandbox):
    with pytest.raises(InvalidArgumentsError, match="aspect_ratio"):
        hook.generate_images("a red fox", aspect_ratio="5:1")

    assert sandbox.seen() == []


def test_a_transient_error_is_retried(hook, sandbox):
    sandbox.add_fault(Fault("status", status=503, retry_after=0))

    assert len(hook.generate_images("a red fox")) == 1
    assert len(sandbox.ledger()) == 1
    assert len({seen.client_request_id for seen in sandbox.seen()}) == 2


def test_a_request_whose_response_was_lost_is_not_sent_again(hook, sandbox):
    sandbox.add_fault(Fault("reset", billed=True))

    with pytest.raises(LostAnswerError) as caught:
        hook.generate_images("a red fox")

    assert [charge.client_request_id for charge in sandbox.ledger()] == [caught.value.client_request_id]


def test_a_failure_after_paid_requests_lists_what_was_paid(hook, sandbox):
    sandbox.add_fault(Fault("status", status=400, skip=2))

    with pytest.raises(Exception, match="400") as caught:
        hook.generate_images("a red fox", model="blackforestlabs/flux-2-pro", num_images=3)

    ids = [charge.inference_id for charge in sandbox.ledger()]
    assert len(ids) == 2
    assert caught.value.__notes__ == [f"2 of 3 requests had already been paid for: {ids[0]}, {ids[1]}."]
    kept = caught.value.generations
    assert [generation.inference_id for generation in kept] == ids
    assert all(hook.download(generation.urls[0]) for generation in kept)


# --- downloading ------------------------------------------------------------------------------------------------------


def test_an_image_is_downloaded_without_the_key_and_no_log_shows_its_signature(hook, sandbox, caplog):
    sandbox.add_fault(Fault("signed_links"))
    with caplog.at_level(logging.DEBUG):
        (generation,) = hook.generate_images("a red fox")
        (url,) = generation.urls
        assert hook.download(url).startswith(b"\x89PNG")

    (seen,) = [seen for seen in sandbox.seen() if seen.host == "cdn"]
    assert "authorization" not in seen.headers
    assert sandbox.api_key not in str(seen)
    query = url.partition("?")[2]
    assert query
    assert query not in caplog.text
    assert sandbox.api_key not in caplog.text


def test_the_error_of_a_download_shows_neither_path_nor_signature(hook, sandbox, caplog):
    sandbox.add_fault(Fault("signed_links"))
    (generation,) = hook.generate_images("a red fox")
    sandbox.add_fault(Fault("expired", times=None))
    (url,) = generation.urls

    with pytest.raises(DownloadError) as caught:
        hook.download(url)

    assert url.partition("?")[2] not in repr(vars(caught.value)) + str(caught.value)


def test_an_api_elsewhere_may_not_return_private_urls(make_hook, sandbox):
    url = f"{sandbox.cdn_url}/a.png"
    hook = make_hook(host="http://93.184.215.14")  # a literal: nothing is resolved or called

    with pytest.raises(UnsafeAddressError):
        hook.download(url)

    assert sandbox.seen() == []


@pytest.fixture
def image_server_port():
    """The port of a loopback server that returns the same bytes for every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"\x89PNG")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("balance", ["NaN", "Infinity", "-Infinity", "1e999", '"5"', "true", "null"])
def test_a_balance_that_is_not_an_amount_is_unreadable(make_hook, balance):
    body = f'{{"current_balance": {balance}}}'.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UnreadableResponseError, match="no balance"):
            make_hook(host=f"http://127.0.0.1:{server.server_address[1]}").get_balance()
        server.shutdown()


def test_a_private_api_allows_downloads_from_its_own_port_only(make_hook, sandbox, image_server_port):
    hook = make_hook(host=f"http://127.0.0.1:{image_server_port}/v1", password=KEY)

    assert hook.download(f"http://127.0.0.1:{image_server_port}/a.png") == b"\x89PNG"
    for host in ("127.0.0.1", "localhost", "[::1]"):
        with pytest.raises(UnsafeAddressError, match="allowed_download_hosts can allow"):
            hook.download(sandbox.cdn_url.replace("127.0.0.1", host))
    assert sandbox.seen() == []


@pytest.mark.parametrize("entry", ["127.0.0.1:{port}", "127.0.0.1", "10.0.0.1, 127.1:{port} ,", "LOCALHOST,127.0.0.1"])
def test_more_private_hosts_can_be_configured(make_hook, image_server_port, monkeypatch, entry):
    monkeypatch.setenv("AIRFLOW__IMAGEN__ALLOWED_DOWNLOAD_HOSTS", entry.format(port=image_server_port))

    hook = make_hook(host="http://93.184.215.14", password=KEY)

    assert hook.download(f"http://127.0.0.1:{image_server_port}/a.png") == b"\x89PNG"


@pytest.mark.parametrize("entry", ["http://127.0.0.1", "127.0.0.0/8", "*", "a b", "cdn:port"])
def test_a_setting_that_is_not_a_host_is_rejected(make_hook, monkeypatch, entry):
    monkeypatch.setenv("AIRFLOW__IMAGEN__ALLOWED_DOWNLOAD_HOSTS", f"10.0.0.1,{entry}")

    with pytest.raises(ValueError, match=r"\[imagen\] allowed_download_hosts has"):
        make_hook().get_downloader()


@pytest.mark.parametrize(
    ("fields", "extra"),
    [({}, None), ({"password": KEY}, {"sandbox": True}), ({"host": "", "password": ""}, {"sandbox": True})],
)
def test_a_sandbox_serves_images_on_another_port(make_hook, sandbox, fields, extra):
    hook = make_hook(extra=extra, **fields)
    with pytest.raises(DownloadError) as caught:
        hook.download(f"{sandbox.cdn_url}/none.png")
    assert caught.value.status == 404


def test_a_sandbox_may_be_named_localhost(make_hook, sandbox):
    hook = make_hook(host=sandbox.url.replace("127.0.0.1", "localhost"))
    (generation,) = hook.generate_images("a red fox")

    assert hook.download(generation.urls[0]).startswith(b"\x89PNG")


def test_one_downloader_and_one_client_serve_a_hook_until_it_is_closed(hook):
    client, downloader = hook.get_conn(), hook.get_downloader()
    assert (hook.get_conn(), hook.get_downloader()) == (client, downloader)

    hook.close()

    assert hook.get_conn() is not client
    assert hook.get_downloader() is not downloader


# --- free calls -------------------------------------------------------------------------------------------------------


def test_key_and_balance_can_be_read(hook, sandbox):
    sandbox.configure(balance_usd=Decimal("12.5"))

    assert hook.get_key()["scopes"] == ["model:image"]
    assert hook.get_balance() == 12.5
    assert sandbox.ledger() == []


def test_models_and_deprecations_are_listed(hook):
    assert DEFAULT_MODEL in {model["id"] for model in hook.list_models()}
    assert all("pricing" in model for model in hook.list_models(include_pricing=True))
    assert all(row["status"] == "withdrawn" for row in hook.list_deprecations())


def test_the_request_log_has_every_request(hook):
    (generation,) = hook.generate_images("a red fox")
    now = datetime.now(UTC)

    rows = hook.get_request_logs(start=now - timedelta(hours=1), end=now + timedelta(hours=1), model=DEFAULT_MODEL)

    assert [row["client_request_id"] for row in rows] == [generation.client_request_id]


# --- test_connection --------------------------------------------------------------------------------------------------


def serve_json(responses):
    """Start a server that returns the given status and JSON for each path."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, answer = responses[self.path]
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hook_for_account(make_hook):
    servers = []

    def make(key, balance=(200, {"current_balance": 3, "currency": "USD"})):
        servers.append(serve_json({"/v1/key": (200, {"data": key}), "/v2/billing": balance}))
        return make_hook(host=f"http://127.0.0.1:{servers[-1].server_port}", password=KEY)

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_working_connection_reports_key_and_balance_at_no_cost(hook, sandbox):
    assert hook.test_connection() == (
        True,
        "Key 'sandbox' (5a9db0c5…) can generate images (scope model:image). Balance: $100.00.",
    )
    assert [seen.path for seen in sandbox.seen()] == ["/v1/key", "/v2/billing"]


def test_a_disabled_key_fails_the_test(hook_for_account):
    key = {"name": "old", "prefix": "feedc0de", "disabled": True, "scopes": ["model:image"]}

    assert hook_for_account(key).test_connection() == (False, "Key 'old' (feedc0de…) is disabled.")


def test_a_key_without_the_image_scope_fails_the_test(hook_for_account):
    key = {"name": None, "prefix": "feedc0de", "disabled": False, "scopes": ["model:chat"]}

    ok, message = hook_for_account(key).test_connection()

    assert not ok
    assert message == "Key '(unnamed)' (feedc0de…) cannot generate images: it lacks the scope model:image."


@pytest.mark.parametrize("scopes", [None, []])
def test_a_key_without_scopes_may_do_everything(hook_for_account, scopes):
    ok, message = hook_for_account({"prefix": "feedc0de", "scopes": scopes}).test_connection()

    assert ok
    assert "(all scopes)" in message


def test_an_empty_account_fails_the_test(hook_for_account):
    ok, message = hook_for_account({"prefix": "feedc0de"}, (200, {"current_balance": -0.5})).test_connection()

    assert not ok
    assert "out of credits: -$0.50" in message


@pytest.mark.parametrize(
    "answer", [(403, {"requestId": "r", "message": "no"}), (200, {}), (200, {"current_balance": "x"})]
)
def test_an_unreadable_balance_does_not_fail_a_good_key(hook_for_account, answer):
    ok, message = hook_for_account({"prefix": "feedc0de"}, answer).test_connection()

    assert ok
    assert "The balance could not be read" in message


def test_a_missing_balance_is_an_imagen_error(hook_for_account):
    with pytest.raises(UnreadableResponseError):
        hook_for_account({}, (200, {"balance": 1})).get_balance()


def test_a_wrong_key_fails_the_test_and_is_not_shown(make_hook):
    ok, message = make_hook(password=KEY).test_connection()

    assert not ok
    assert "rejected the key (401)" in message
    assert KEY not in message


def test_an_unreachable_host_fails_the_test(make_hook):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    ok, message = make_hook(host=f"http://127.0.0.1:{port}", password=KEY).test_connection()

    assert not ok
    assert "connection refused" in message
    assert KEY not in message


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"extra": {"read_timeout": "soon"}}, "read_timeout"),
        ({"password": ""}, "has no API key"),
        ({"host": "ftp://x"}, "host="),
        ({"host": f"https://me:{KEY}@x.test", "password": KEY}, "host"),
        ({"password": f"{KEY} {KEY}"}, "password"),
    ],
)
def test_an_invalid_connection_fails_the_test_with_the_field(make_hook, fields, shown):
    ok, message = make_hook(**fields).test_connection()

    assert not ok
    assert shown in message
    assert KEY not in message


@pytest.mark.parametrize("conn_id", ["imagen_missing", "team-a.imagen", "team's imagen"])
def test_a_connection_that_does_not_exist_fails_the_test_with_a_command_that_creates_it(conn_id):
    ok, message = ImagenHook(conn_id).test_connection()

    assert not ok
    assert message.startswith(f"There is no connection {conn_id!r}")
    assert "with the API key as its password" in message
    assert shlex.split(message)  # a shell can read the command at its end


def test_the_suggested_environment_variable_creates_a_sandbox_connection(monkeypatch):
    _, message = ImagenHook("imagen_missing").test_connection()

    export, variable = shlex.split(message)[-2:]
    assert export == "export"
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    assert ImagenHook("imagen_missing").test_connection()[0] is True


def test_an_id_that_is_no_shell_variable_gets_another_command():
    _, message = ImagenHook("team-a.imagen").test_connection()

    command = message[message.index("airflow connections add") :]
    assert shlex.split(command) == [
        *("airflow", "connections", "add", "team-a.imagen", "--conn-type", "imagen"),
        *("--conn-extra", '{"sandbox": true}'),
    ]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("status", path="/v1/key", status=401), AuthenticationError),
        (Fault("status", path="/v1/key"), ServerError),
    ],
)
def test_a_failed_free_call_raises_a_typed_error(hook, sandbox, fault, kind):
    sandbox.add_fault(fault)

    with pytest.raises(kind):
        hook.get_key()


# --- the form of Airflow 3.1 ------------------------------------------------------------------------------------------


@pytest.fixture
def mocked_form(monkeypatch):
    """Replace wtforms and flask with Airflow's own mocks, as the UI process of Airflow 3.1 does."""
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    modules = {name: MagicMock() for name in ("wtforms", "flask_babel", "flask_appbuilder.fieldwidgets")}
    modules["flask_appbuilder"] = MagicMock(fieldwidgets=modules["flask_appbuilder.fieldwidgets"])
    modules["wtforms"].StringField = HookMetaService.MockStringField
    modules["wtforms"].BooleanField = HookMetaService.MockBooleanField
    modules["flask_babel"].lazy_gettext = str
    modules["flask_appbuilder.fieldwidgets"].BS3TextFieldWidget = HookMetaService.MockAnyWidget
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return HookMetaService


def test_the_form_of_airflow_3_1_has_every_field_with_its_default(mocked_form):
    widgets = ImagenHook.get_connection_form_widgets()

    assert all(isinstance(widget, mocked_form.MockBaseField) for widget in widgets.values())
    assert {
        name: (widget.param.dump()["schema"]["type"], widget.param.dump()["value"]) for name, widget in widgets.items()
    } == {
        "model": (["string", "null"], None),
        "connect_timeout": (["string", "null"], "10"),
        "read_timeout": (["string", "null"], "300"),
        "max_usd_per_day": (["string", "null"], None),
        "max_usd_per_month": (["string", "null"], None),
        "sandbox": (["boolean", "null"], False),
        "verify": (["string", "null"], "true"),
    }


def test_the_form_of_airflow_3_1_saved_unchanged_means_the_defaults(mocked_form):
    saved = {name: widget.param.dump()["value"] for name, widget in ImagenHook.get_connection_form_widgets().items()}

    assert settings(saved) == settings()


def test_the_standard_fields_of_the_form_are_named_and_hidden():
    behaviour = ImagenHook.get_ui_field_behaviour()

    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
    assert behaviour["relabeling"]["password"] == "API key"
    assert "login" in behaviour["hidden_fields"]
