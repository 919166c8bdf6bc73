"""An OpenAI-compatible gateway as the connection's host: it responds like LiteLLM's proxy, over real HTTP."""

from __future__ import annotations

import base64
import json
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.exceptions import AuthenticationError, InvalidRequestError
from airflow_provider_imagen.hooks.imagen import ImagenHook

KEY = "sk-1234"
IMAGE = b"\x89PNG the rest"
OPENAI = {
    "error": {"message": "Unknown parameter: '{}'.", "type": "invalid_request_error", "code": "unknown_parameter"}
}
LITELLM = {
    "error": {
        "message": "litellm.UnsupportedParamsError: Setting `{}` is not supported by openai, gpt-image-1. To drop "
        "these params, set `litellm.drop_params=True`",
        "type": "None",
        "param": "None",
        "code": "400",
    }
}


class Gateway:
    """
    Responds like LiteLLM's proxy.

    :param refusal: body of the 400 for a field that is not OpenAI's, with the field in place of ``{}``
    :param cost: ``x-litellm-response-cost``
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any] | None]] = []
        self.refusal: Any = LITELLM
        self.cost = "0.042"
        self.models = ["gpt-image-1", "team/painter"]
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: Any, **headers: str) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), "x-litellm-version": "1.82.0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def has_key(self) -> bool:
                if self.headers.get("Authorization") == f"Bearer {KEY}":
                    return True
                self.answer(401, {"error": {"message": "Authentication Error", "type": "auth_error", "code": "401"}})
                return False

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                gateway.seen.append((path, None))
                if not self.has_key():
                    return
                if path != "/v1/models":
                    self.answer(404, {"detail": "Not Found"})
                    return
                rows = [
                    {"id": m, "object": "model", "created": 1677610602, "owned_by": "openai"} for m in gateway.models
                ]
                self.answer(200, {"object": "list", "data": rows})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                gateway.seen.append((self.path, body))
                if not self.has_key():
                    return
                for name in ("response_format", "convert_base64_to_url", "sync_mode"):
                    if name in body:
                        self.answer(400, json.loads(json.dumps(gateway.refusal).replace("{}", name)))
                        return
                data = [{"b64_json": base64.b64encode(IMAGE).decode(), "url": None}]
                cost = {"x-litellm-response-cost": gateway.cost}
                self.answer(200, {"created": 1, "data": data}, **cost)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def posts(self) -> list[dict[str, Any]]:
        return [body for _, body in self.seen if body is not None]


@pytest.fixture
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()


@pytest.fixture
def make_hook(gateway, monkeypatch):
    hooks = []

    def make(**fields):
        connection = {"conn_type": "imagen", "host": gateway.url, "password": KEY, "extra": {"model": "gpt-image-1"}}
        monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(connection | fields))
        hooks.append(ImagenHook())
        return hooks[-1]

    yield make
    for hook in hooks:
        hook.close()


@pytest.mark.parametrize("refusal", [OPENAI, LITELLM])
@pytest.mark.parametrize("model", ["gpt-image-1", "imagen-3.0-generate-002", "bytedance/seedream-v4-text-to-image"])
def test_a_field_that_a_gateway_rejects_is_left_out_from_then_on(make_hook, gateway, refusal, model):
    gateway.refusal = refusal
    hook = make_hook()
    for _ in range(2):
        (generation,) = hook.generate_images("a cat", model=model)
        assert generation.pictures[0].data == IMAGE
    switches = [{"response_format", "convert_base64_to_url", "sync_mode"} & body.keys() for body in gateway.posts()]
    assert [len(found) for found in switches] == [1, 0, 0]


def test_other_rejections_are_errors(make_hook, gateway):
    gateway.refusal = {"error": {"message": "response_format must be url", "code": "400"}}
    with pytest.raises(InvalidRequestError, match="must be url"):
        make_hook().generate_images("a cat")
    assert len(gateway.posts()) == 1


@pytest.mark.parametrize(
    ("cost", "usd"), [("0.042", Decimal("0.042")), ("4.2e-05", Decimal("0.000042")), ("0.0", None), ("None", None)]
)
def test_the_cost_that_litellm_computes_counts(make_hook, gateway, cost, usd):
    """A cost of 0 means that LiteLLM knows no price for the model, not that the image was free."""
    gateway.cost = cost
    (generation,) = make_hook().generate_images("a cat")
    assert (generation.usd, generation.usd_source) == (usd, "header" if usd else None)


def test_the_connection_test_recognizes_a_gateway(make_hook, gateway):
    fine, message = make_hook().test_connection()
    assert fine
    assert "OpenAI-compatible gateway and accepts the key; it lists 2 models" in message
    assert gateway.posts() == []


def test_a_gateway_cannot_keep_a_cap_on_the_usage_of_the_key(make_hook, gateway):
    hook = make_hook(extra={"model": "gpt-image-1", "max_usd_per_day": 5})
    with pytest.raises(InvalidRequestError, match="max_usd_per_day of the connection cannot be checked"):
        hook.generate_images("a cat")
    assert gateway.posts() == []
    fine, message = hook.test_connection()
    assert (fine, "max_usd_per_day needs what a gateway lacks" in message) == (False, True)


def test_a_wrong_key_fails_at_a_gateway_as_well(make_hook):
    fine, message = make_hook(password="sk-wrong").test_connection()
    assert not fine
    assert "sk-wrong" not in message
    with pytest.raises(AuthenticationError):
        make_hook(password="sk-wrong").generate_images("a cat")


def test_a_host_that_lists_no_models_is_not_a_gateway(make_hook, gateway):
    gateway.models = []
    fine, message = make_hook().test_connection()
    assert not fine
    assert "URL does not exist (404)" in message


def test_models_are_judged_by_the_gateways_list(make_hook):
    states = make_hook().check_models(["gpt-image-1", "openai/gpt-image-1", "team/painter", "flux/dev"])
    assert [state.state for state in states] == ["alive", "alive", "alive", "unknown"]


def test_an_unknown_model_is_looked_up_in_the_gateways_list(make_hook):
    found = make_hook().look_up_model("team/painter")
    assert (found.id, found.known_as, found.can_make_images) == ("team/painter", None, True)
    assert make_hook().look_up_model("team/poet").can_make_images is False


def test_a_quote_falls_back_to_last_known_prices(make_hook):
    quote = make_hook().quote("a cat", model="gpt-image-2")
    assert (quote.usd, quote.source) == (Decimal("0.054"), "last known")


def test_the_check_command_works_through_a_gateway(make_hook, capsys, tmp_path):
    make_hook(extra={"model": "team/painter"})
    assert main(["check", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["connection"]["balance_usd"] is None
    assert [model["state"] for model in report["models"]] == ["alive"]


def test_a_quote_through_a_gateway_says_why_it_uses_last_known_prices(make_hook, capsys, tmp_path):
    make_hook()
    dag_file = tmp_path / "dag.py"
    dag_file.write_text(
        "from airflow.sdk import DAG\n"
        "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator\n"
        'with DAG("d", schedule=None):\n'
        '    ImagenGenerateOperator(task_id="paint", prompt="x", model="imagen-3.0-generate-002")\n'
    )
    assert main(["quote", str(dag_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["usd"] > 0, found["usd_source"]) == (True, "last known")
    assert found["notices"] == ["The API states no price for imagen-3.0-generate-002; its last known one applies."]
