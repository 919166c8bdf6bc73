"""The paid endpoints: validate a request, bill it, return images."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import re
import time
import uuid
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from starlette.responses import Response

from airflow_provider_imagen.sandbox import response_shapes
from airflow_provider_imagen.sandbox.account import CREDITS_PER_USD, LogRow
from airflow_provider_imagen.sandbox.control_types import Charge
from airflow_provider_imagen.sandbox.drawing import dominant_colors
from airflow_provider_imagen.sandbox.envelopes import error_body, validation_meta
from airflow_provider_imagen.sandbox.fault_responses import fault_response
from airflow_provider_imagen.sandbox.image_sizes import image_size
from airflow_provider_imagen.sandbox.image_store import Recipe
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse
from airflow_provider_imagen.sandbox.model_specs import SandboxModel, find_model
from airflow_provider_imagen.sandbox.signed_queries import signed_query
from airflow_provider_imagen.sandbox.transport import Truncated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from airflow_provider_imagen.sandbox.faults import Fault, Hits
    from airflow_provider_imagen.sandbox.settings import Settings
    from airflow_provider_imagen.sandbox.state import State

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REWRITE_SUFFIXES = (
    "in soft morning light",
    "with fine detail",
    "wide view, calm mood",
    "rich colours, gentle shadows",
)
_DAMAGED = {
    "null": rb"before \u0000 after",
    "surrogate": rb"before \ud83d after",
    "control": b"before \x01 after",
    "encoding": b"before \xff after",
    "escape": rb"before \d after",
    "quote": b'before "quoted" after',
}

Colors = tuple[tuple[int, int, int], ...]


class RejectedError(Exception):
    """Rejection of a request before it costs anything."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        problem: bool = False,
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = partial(error_body, status, message, envelope="problem" if problem else "old", **details)
        self.media_type = "application/problem+json" if problem else None


@dataclass(frozen=True)
class ValidatedRequest:
    """
    A validated request.

    :param body: without fields that the model does not have
    :param count: number of images
    :param seed: seed in the body, else derived from the prompt and the sandbox's seed
    :param usd_each: price of one image in USD
    """

    model: SandboxModel
    body: dict[str, Any]
    prompt: str
    count: int
    seed: int
    usd_each: Decimal
    colors: Colors

    @property
    def usd(self) -> Decimal:
        """Price of all images in USD."""
        return self.usd_each * self.count


class Call:
    """One HTTP call to a paid endpoint: its ids, its charge and its log row."""

    def __init__(self, state: State, path: str, client_request_id: str | None) -> None:
        self.state = state
        self.path = path
        self.started = state.clock()
        self.began = time.monotonic()
        self.epoch = state.account.epoch
        self.request_id = str(uuid.uuid4())
        self.inference_id = uuid.uuid4().hex[:21]
        valid = client_request_id is not None and _CLIENT_REQUEST_ID.fullmatch(client_request_id)
        self.client_request_id = client_request_id if valid else None
        self.model_name = "unknown"

    @property
    def headers(self) -> dict[str, str]:
        """The id headers of every response."""
        ids = {"x-inference-id": self.inference_id}
        return ids if self.client_request_id is None else {**ids, "x-client-request-id": self.client_request_id}

    def row(self, usd: Decimal | None) -> LogRow:
        """Return the log row; the request counts as failed if ``usd`` is ``None``."""
        return LogRow(
            created=self.started,
            finished=self.state.true_clock(),
            status="failed" if usd is None else "succeeded",
            model=self.model_name,
            usd=usd or Decimal(0),
            request_id=self.request_id,
            inference_id=self.inference_id,
            client_request_id=self.client_request_id,
        )

    def fail(self) -> None:
        """Log that the call failed and cost nothing."""
        self.state.account.log_unbilled(self.row(None), epoch=self.epoch)

    def bill(self, validated: ValidatedRequest, *, images: int, usd: Decimal) -> None:
        """Charge a request and log that it succeeded."""
        charge = Charge(
            client_request_id=self.client_request_id,
            inference_id=self.inference_id,
            model=validated.model.id,
            prompt=validated.prompt,
            images=images,
            usd=usd,
            at=self.state.clock(),
        )
        self.state.account.charge(charge, self.row(usd), held_usd=validated.usd, epoch=self.epoch)


async def generations(request: Request) -> Any:
    """Handle ``POST /v1/images/generations``."""
    return await _respond(request, edits=False)


async def edits(request: Request) -> Any:
    """Handle ``POST /v1/images/edits``."""
    return await _respond(request, edits=True)


async def _respond(request: Request, *, edits: bool) -> Any:
    state: State = request.app.state.sandbox
    call = Call(state, request.url.path, request.headers.get("x-client-request-id"))
    try:
        body, uploads = await (_read_form(request) if edits else _read_json(request))
        call.model_name = str(body.get("model") or "unknown")
        validated = await _check(state, body, uploads, edits=edits)
        call.model_name = validated.model.id
        _enforce_limits(state)
        if not state.account.hold(validated.usd, epoch=call.epoch):
            raise RejectedError(
                403,
                "The account has run out of credits. Add funds to continue.",
                problem=True,
                error_kind="err_insufficent_credits",
            )
        hits = state.faults.hits("generate", prompt=validated.prompt, models=validated.model.names)
    except RejectedError as rejection:
        call.fail()
        body = rejection.body(path=call.path, now=state.clock())
        headers = {**call.headers, **rejection.headers}
        return AsciiJSONResponse(body, rejection.status, headers, media_type=rejection.media_type)
    state.account.enter(epoch=call.epoch)
    try:
        response = await _serve(call, validated, hits)
    except BaseException:
        state.account.leave(epoch=call.epoch)
        raise
    return _CountedInFlight(call, response)


class _CountedInFlight:
    """Count a request as in flight until its response is sent."""

    def __init__(self, call: Call, response: Any) -> None:
        self.call = call
        self.response = response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run as an ASGI application."""
        try:
            await self.response(scope, receive, send)
        finally:
            self.call.state.account.leave(epoch=self.call.epoch)


def _enforce_limits(state: State) -> None:
    settings = state.settings
    if settings.max_concurrent is not None and state.account.in_flight >= settings.max_concurrent:
        raise _rate_limited(settings, "Too many concurrent requests.", seconds=1.0)  # the actual wait is unknown
    seconds = state.generation_meter.seconds_to_wait(settings.generation_limit, now=state.true_clock())
    if seconds:
        raise _rate_limited(settings, "Too many requests per minute.", seconds=seconds)


def _rate_limited(settings: Settings, message: str, *, seconds: float) -> RejectedError:
    headers = {"retry-after": str(max(1, math.ceil(seconds)))} if settings.tells_retry_after else None
    return RejectedError(429, message, problem=settings.limit_envelope == "problem", headers=headers)


async def _read_json(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RejectedError(400, "Unexpected token in JSON body") from None
    if not isinstance(body, dict):
        raise RejectedError(400, "Body validation error!", meta={"_errors": ["Expected object"]})
    return body, []


async def _read_form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RejectedError(400, "Body validation error!", meta={"_errors": [], "image": {"_errors": ["Required"]}})
    body: dict[str, Any] = {}
    uploads: list[bytes] = []
    async with request.form(max_part_size=1024 * 1024) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                body[name.removesuffix("[]")] = int(value) if value.isdigit() else value
            elif name.removesuffix("[]") == "image":
                uploads.append(await value.read())
    if "prompt" in body:
        body["prompt"] = str(body["prompt"])
    return body, uploads


async def _check(state: State, body: dict[str, Any], uploads: list[bytes], *, edits: bool) -> ValidatedRequest:
    found = find_model(body.get("model"))
    model = found.edits if found is not None and edits else found
    if body.get("model") is None:
        raise RejectedError(400, "Body validation error!", meta={"_errors": [], "model": {"_errors": ["Required"]}})
    if found is None or model is None or found.status == "withdrawn":
        raise RejectedError(404, f"Model {body['model']} not found")
    if edits:
        body = body | ({"image": [{} for _ in uploads]} if uploads else {})
    if errors := list(model.validator.iter_errors(body)):
        raise RejectedError(400, "Body validation error!", meta=validation_meta(errors))
    body = {name: value for name, value in body.items() if name in model.fields}
    if "seed" in body and body.get("add_watermark") is True:
        raise RejectedError(400, "Seed is not supported when watermark is enabled")
    if body.get("background") == "transparent" and body.get("output_format") == "jpeg":
        raise RejectedError(400, "Transparent background is not supported for output format 'jpeg'")
    count = body.get(model.count_field, 1) if model.count_field else 1
    if count != int(count) or count < 1:
        raise RejectedError(400, "Number of images must be a whole number of at least 1")
    prompt = str(body.get("prompt", ""))
    inputs = uploads or _decode_inputs(body)
    return ValidatedRequest(
        model=model,
        body=body,
        prompt=prompt,
        count=int(count),
        seed=int(body["seed"]) if "seed" in body else _default_seed(prompt, state.settings.seed),
        usd_each=model.price(body),
        colors=await asyncio.get_running_loop().run_in_executor(state.draw_threads, dominant_colors, inputs[0])
        if inputs
        else (),
    )


def _decode_inputs(body: Mapping[str, Any]) -> list[bytes]:
    """Return the input images in the body that are ``data:`` URIs or base64, decoded."""
    decoded = []
    for name in ("image_url", "image_urls", "image"):
        values = body.get(name)
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or value.startswith(("http:", "https:")):
                continue
            head, comma, rest = value.partition(",")
            text = rest if comma and head.startswith("data:") else value
            try:
                decoded.append(base64.b64decode(unquote_to_bytes(text)))
            except ValueError:
                raise RejectedError(400, f"Cannot decode the image in {name}") from None
    return decoded


def _default_seed(prompt: str, seed: int) -> int:
    """Return a 63-bit seed derived from the prompt."""
    return (
        int.from_bytes(hashlib.sha256(repr((seed, prompt)).encode("ascii", "backslashreplace")).digest()[:8], "big")
        >> 1
    )


async def _serve(call: Call, validated: ValidatedRequest, hits: Hits) -> Any:
    """Bill an accepted request, unless its faults prevent that, and return the response."""
    state = call.state
    slow = hits["before"].setting("seconds") if "before" in hits else 0.0
    await asyncio.sleep(state.settings.latency_seconds + slow)
    end, content = hits.get("end"), hits.get("content")
    images = _image_count(validated, hits.get("images"))
    unbilled = [
        fault
        for fault in (end, content, hits.get("images"))
        if fault is not None and fault.kind != "cut_body" and fault.setting("billed") is False
    ]
    usd = Decimal(0) if unbilled else validated.usd_each * (images or validated.count)
    if end is not None and (end in unbilled or end.kind in ("upstream_4xx", "withdrawn")):
        state.account.release(validated.usd, epoch=call.epoch)
        if end.setting("logged") is not False:
            call.fail()
        return fault_response(end, path=call.path, now=state.clock(), headers=call.headers)
    if unbilled:
        state.account.release(validated.usd, epoch=call.epoch)
        call.fail()
    else:
        call.bill(validated, images=images or validated.count, usd=usd)
    if "after" in hits:
        await asyncio.sleep(hits["after"].setting("seconds"))
    if end is not None and end.kind != "cut_body":
        cost_headers = _cost_headers(hits, usd) if "usage" in hits else {}
        return fault_response(end, path=call.path, now=state.clock(), headers={**call.headers, **cost_headers})
    body, headers = await _body(call, validated, hits, images=images, usd=usd)
    if end is not None:
        encoded = json.dumps(body).encode()
        headers = {**headers, "content-type": "application/json"}
        return Truncated(encoded[: len(encoded) // 2], content_length=len(encoded), headers=headers)
    if "text" in hits:
        damaged = _damage(body, str(hits["text"].setting("damage")))
        return Response(damaged, 200, headers, media_type="application/json")
    return AsciiJSONResponse(body, 200, headers)


def _damage(body: dict[str, Any], damage: str) -> bytes:
    """Return the encoded body with a damaged ``revised_prompt`` for each image."""
    for name in ("data", "images"):
        for item in body.get(name) or ():
            item["revised_prompt"] = "before @ after"
    encoded = json.dumps(body).encode()
    return encoded + b"\n<!-- ok -->" if damage == "behind" else encoded.replace(b"before @ after", _DAMAGED[damage])


def _image_count(validated: ValidatedRequest, fault: Fault | None) -> int:
    if fault is None:
        return validated.count
    return 0 if fault.kind == "none" else min(validated.count, int(fault.setting("count")))


async def _body(
    call: Call, validated: ValidatedRequest, hits: Hits, *, images: int, usd: Decimal
) -> tuple[dict[str, Any], dict[str, str]]:
    state = call.state
    headers = {**call.headers, **_cost_headers(hits, usd)}
    content = hits.get("content")
    if content is not None and content.kind == "error_in_200":
        return {"error": {"message": content.setting("message"), "code": "image_generation_failed"}}, headers
    if content is not None and content.kind == "wrong_json":
        return {"result": "done", "artifacts": images}, headers
    shape = hits["shape"].setting("shape") if "shape" in hits else validated.model.shape
    if content is not None and content.kind == "bad_base64":
        body: dict[str, Any] = {"data": [{"url": None, "b64_json": "%%% not base64 %%%"} for _ in range(images)]}
    else:
        inline = response_shapes.is_inline(shape) or _is_inline_requested(validated)
        rendered = [await _render(state, validated, index, inline=inline, hits=hits) for index in range(images)]
        if shape in ("A", "B", "C", "D", "E"):
            body = response_shapes.response_body(
                shape,
                rendered,
                model=validated.model.id,
                prompt=validated.prompt,
                seed=validated.seed,
                seconds=time.monotonic() - call.began,
                now=state.clock(),
            )
        else:
            body = response_shapes.forced_body(shape, rendered)
    if "images" in hits and hits["images"].kind == "none":
        body |= dict.fromkeys(
            [name for name in ("data", "images") if name in body],
            [] if hits["images"].setting("value") == "empty" else None,
        )
    _flag(body, hits.get("flags"), images)
    reported = _cost_location(hits)
    if reported not in ("none", "nothing") and shape in ("A", "C", "D"):
        names = (
            (reported,) if reported in ("usd_spent", "credits_used", "tokens_used") else ("credits_used", "usd_spent")
        )
        body["meta"] = response_shapes.cost_meta(usd, int(usd * CREDITS_PER_USD), names)
    return body, headers


def _cost_location(hits: Hits) -> str:
    """Return where the response reports its cost."""
    return str(hits["usage"].setting("usage")) if "usage" in hits else "all"


def _cost_headers(hits: Hits, usd: Decimal) -> dict[str, str]:
    if _cost_location(hits) not in ("all", "none"):
        return {}
    return {
        "x-aimlapi-credits-used": str(int(usd * CREDITS_PER_USD)),
        "x-aimlapi-usd-spent": f"{usd.normalize():f}",
    }


def _flag(body: dict[str, Any], fault: Fault | None, images: int) -> None:
    if fault is None:
        return
    if fault.kind == "nsfw":
        body["has_nsfw_concepts"] = [True] * images
        return
    for name in ("data", "images"):
        for item in body.get(name) or ():
            item["content_violation"] = True


def _is_inline_requested(validated: ValidatedRequest) -> bool:
    body = validated.body
    return (
        body.get("convert_base64_to_url") is False
        or body.get("response_format") == "b64_json"
        or body.get("sync_mode") is True
    )


async def _render(
    state: State, validated: ValidatedRequest, index: int, *, inline: bool, hits: Hits
) -> response_shapes.RenderedImage:
    width, height = image_size(validated.model, validated.body)
    if "size" in hits:
        width = height = min(width, height)
    scale = state.settings.picture_scale
    image_format = str(validated.body.get("output_format", validated.model.format))
    recipe = Recipe(
        model=validated.model.id,
        prompt=validated.prompt,
        seed=validated.seed,
        width=max(8, round(width * scale)),
        height=max(8, round(height * scale)),
        index=index,
        format={"jpg": "jpeg", "tif": "tiff"}.get(image_format, image_format),
        colors=validated.colors,
    )
    rewritten = None
    if validated.body.get("enhance_prompt", validated.model.fields.get("enhance_prompt", {}).get("default")) is True:
        rewritten = f"{validated.prompt}, {_REWRITE_SUFFIXES[(validated.seed + index) % len(_REWRITE_SUFFIXES)]}"
    if inline:
        return response_shapes.RenderedImage(recipe, data=await state.draw(recipe), prompt=rewritten)
    sign = None
    now = state.clock()
    if (signing := hits.get("urls")) is not None:
        seconds = signing.setting("seconds")

        def sign(path: str) -> tuple[str, float]:
            return signed_query(path, style=signing.setting("style"), now=now, seconds=seconds), now + seconds

    path = state.images.add(recipe, models=validated.model.names, now=now, sign=sign)
    return response_shapes.RenderedImage(recipe, url=state.cdn_url + path, prompt=rewritten)
