"""The paid endpoints: check a request, bill it, answer with images."""

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
from airflow_provider_imagen.sandbox.drawing import main_colors
from airflow_provider_imagen.sandbox.envelopes import error_body, validation_meta
from airflow_provider_imagen.sandbox.fault_responses import failing_answer
from airflow_provider_imagen.sandbox.image_sizes import size_of
from airflow_provider_imagen.sandbox.image_store import Recipe
from airflow_provider_imagen.sandbox.json_responses import Json
from airflow_provider_imagen.sandbox.model_specs import SandboxModel, find_model
from airflow_provider_imagen.sandbox.signed_queries import signed_query
from airflow_provider_imagen.sandbox.transport import Cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from airflow_provider_imagen.sandbox.faults import Fault, Hits
    from airflow_provider_imagen.sandbox.settings import Settings
    from airflow_provider_imagen.sandbox.state import State

_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FLOURISHES = ("in soft morning light", "with fine detail", "wide view, calm mood", "rich colours, gentle shadows")
_DAMAGED = {
    "null": rb"before \u0000 after",
    "surrogate": rb"before \ud83d after",
    "control": b"before \x01 after",
    "encoding": b"before \xff after",
    "escape": rb"before \d after",
    "quote": b'before "quoted" after',
}

Colors = tuple[tuple[int, int, int], ...]


class RefusedError(Exception):
    """The request is rejected before it costs anything."""

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
class Order:
    """
    A checked request.

    :param body: without the fields the model does not know
    :param count: pictures to make
    :param seed: the body's, else derived from the prompt and the sandbox's seed
    :param usd_each: price of one picture, in USD
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
        """Price of all pictures, in USD."""
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
        """The ids, which every response carries."""
        ids = {"x-inference-id": self.inference_id}
        return ids if self.client_request_id is None else {**ids, "x-client-request-id": self.client_request_id}

    def row(self, usd: Decimal | None) -> LogRow:
        """Return the log row; without a charge the request counts as failed."""
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
        self.state.account.note(self.row(None), epoch=self.epoch)

    def bill(self, order: Order, *, images: int, usd: Decimal) -> None:
        """Charge an order and log that it succeeded."""
        charge = Charge(
            client_request_id=self.client_request_id,
            inference_id=self.inference_id,
            model=order.model.id,
            prompt=order.prompt,
            images=images,
            usd=usd,
            at=self.state.clock(),
        )
        self.state.account.charge(charge, self.row(usd), held_usd=order.usd, epoch=self.epoch)


async def generations(request: Request) -> Any:
    """Answer ``POST /v1/images/generations``."""
    return await _answer(request, edits=False)


async def edits(request: Request) -> Any:
    """Answer ``POST /v1/images/edits``."""
    return await _answer(request, edits=True)


async def _answer(request: Request, *, edits: bool) -> Any:
    state: State = request.app.state.sandbox
    call = Call(state, request.url.path, request.headers.get("x-client-request-id"))
    try:
        body, uploads = await (_read_form(request) if edits else _read_json(request))
        call.model_name = str(body.get("model") or "unknown")
        order = await _check(state, body, uploads, edits=edits)
        call.model_name = order.model.id
        _keep_limits(state)
        if not state.account.hold(order.usd, epoch=call.epoch):
            raise RefusedError(
                403,
                "The account has run out of credits. Add funds to go on.",
                problem=True,
                error_kind="err_insufficent_credits",
            )
        hits = state.faults.hits("generate", prompt=order.prompt, models=order.model.names)
    except RefusedError as refusal:
        call.fail()
        body = refusal.body(path=call.path, now=state.clock())
        headers = {**call.headers, **refusal.headers}
        return Json(body, refusal.status, headers, media_type=refusal.media_type)
    state.account.enter(epoch=call.epoch)
    try:
        answer = await _serve(call, order, hits)
    except BaseException:
        state.account.leave(epoch=call.epoch)
        raise
    return _InFlight(call, answer)


class _InFlight:
    """Count a request as in flight until its response is sent."""

    def __init__(self, call: Call, answer: Any) -> None:
        self.call = call
        self.answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run as an ASGI application."""
        try:
            await self.answer(scope, receive, send)
        finally:
            self.call.state.account.leave(epoch=self.call.epoch)


def _keep_limits(state: State) -> None:
    settings = state.settings
    if settings.max_concurrent is not None and state.account.in_flight >= settings.max_concurrent:
        raise _over_limit(settings, "Too many requests at once.", seconds=1.0)  # unknown until one ends
    seconds = state.generation_meter.seconds_to_wait(settings.generation_limit, now=state.true_clock())
    if seconds:
        raise _over_limit(settings, "Too many requests per minute.", seconds=seconds)


def _over_limit(settings: Settings, message: str, *, seconds: float) -> RefusedError:
    headers = {"retry-after": str(max(1, math.ceil(seconds)))} if settings.tells_retry_after else None
    return RefusedError(429, message, problem=settings.limit_envelope == "problem", headers=headers)


async def _read_json(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RefusedError(400, "Unexpected token in JSON body") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "Body validation error!", meta={"_errors": ["Expected object"]})
    return body, []


async def _read_form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RefusedError(400, "Body validation error!", meta={"_errors": [], "image": {"_errors": ["Required"]}})
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


async def _check(state: State, body: dict[str, Any], uploads: list[bytes], *, edits: bool) -> Order:
    found = find_model(body.get("model"))
    model = found.edits if found is not None and edits else found
    if body.get("model") is None:
        raise RefusedError(400, "Body validation error!", meta={"_errors": [], "model": {"_errors": ["Required"]}})
    if found is None or model is None or found.status == "withdrawn":
        raise RefusedError(404, f"Model {body['model']} not found")
    if edits:
        body = body | ({"image": [{} for _ in uploads]} if uploads else {})
    if errors := list(model.validator.iter_errors(body)):
        raise RefusedError(400, "Body validation error!", meta=validation_meta(errors))
    body = {name: value for name, value in body.items() if name in model.fields}
    if "seed" in body and body.get("add_watermark") is True:
        raise RefusedError(400, "Seed is not supported when watermark is enabled")
    if body.get("background") == "transparent" and body.get("output_format") == "jpeg":
        raise RefusedError(400, "Transparent background is not supported for output format 'jpeg'")
    count = body.get(model.count_field, 1) if model.count_field else 1
    if count != int(count) or count < 1:
        raise RefusedError(400, "Number of images must be a whole number of at least 1")
    prompt = str(body.get("prompt", ""))
    inputs = uploads or _inline_inputs(body)
    return Order(
        model=model,
        body=body,
        prompt=prompt,
        count=int(count),
        seed=int(body["seed"]) if "seed" in body else _own_seed(prompt, state.settings.seed),
        usd_each=model.price(body),
        colors=await asyncio.get_running_loop().run_in_executor(state.artists, main_colors, inputs[0])
        if inputs
        else (),
    )


def _inline_inputs(body: Mapping[str, Any]) -> list[bytes]:
    """Decode the input images in the body, given as ``data:`` URIs or base64."""
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
                raise RefusedError(400, f"Cannot read the picture in {name}") from None
    return decoded


def _own_seed(prompt: str, seed: int) -> int:
    """Return a 63-bit seed, always the same for the same prompt."""
    return (
        int.from_bytes(hashlib.sha256(repr((seed, prompt)).encode("ascii", "backslashreplace")).digest()[:8], "big")
        >> 1
    )


async def _serve(call: Call, order: Order, hits: Hits) -> Any:
    """Return the response to an accepted order, which is billed as its faults say."""
    state = call.state
    slow = hits["before"].setting("seconds") if "before" in hits else 0.0
    await asyncio.sleep(state.settings.latency_seconds + slow)
    end, content = hits.get("end"), hits.get("content")
    images = _images_made(order, hits.get("pictures"))
    unbilled = [
        fault
        for fault in (end, content, hits.get("pictures"))
        if fault is not None and fault.kind != "cut_body" and fault.setting("billed") is False
    ]
    usd = Decimal(0) if unbilled else order.usd_each * (images or order.count)
    if end is not None and (end in unbilled or end.kind in ("upstream_4xx", "withdrawn")):
        state.account.release(order.usd, epoch=call.epoch)
        if end.setting("logged") is not False:
            call.fail()
        return failing_answer(end, path=call.path, now=state.clock(), headers=call.headers)
    if unbilled:
        state.account.release(order.usd, epoch=call.epoch)
        call.fail()
    else:
        call.bill(order, images=images or order.count, usd=usd)
    if "after" in hits:
        await asyncio.sleep(hits["after"].setting("seconds"))
    if end is not None and end.kind != "cut_body":
        stated = _cost_headers(hits, usd) if "usage" in hits else {}
        return failing_answer(end, path=call.path, now=state.clock(), headers={**call.headers, **stated})
    body, headers = await _body(call, order, hits, images=images, usd=usd)
    if end is not None:
        whole = json.dumps(body).encode()
        headers = {**headers, "content-type": "application/json"}
        return Cut(whole[: len(whole) // 2], content_length=len(whole), headers=headers)
    if "text" in hits:
        damaged = _damage(body, str(hits["text"].setting("damage")))
        return Response(damaged, 200, headers, media_type="application/json")
    return Json(body, 200, headers)


def _damage(body: dict[str, Any], damage: str) -> bytes:
    """Encode a body with a damaged ``revised_prompt`` beside each image."""
    for name in ("data", "images"):
        for item in body.get(name) or ():
            item["revised_prompt"] = "before @ after"
    whole = json.dumps(body).encode()
    return whole + b"\n<!-- ok -->" if damage == "behind" else whole.replace(b"before @ after", _DAMAGED[damage])


def _images_made(order: Order, fault: Fault | None) -> int:
    if fault is None:
        return order.count
    return 0 if fault.kind == "none" else min(order.count, int(fault.setting("count")))


async def _body(
    call: Call, order: Order, hits: Hits, *, images: int, usd: Decimal
) -> tuple[dict[str, Any], dict[str, str]]:
    state = call.state
    headers = {**call.headers, **_cost_headers(hits, usd)}
    content = hits.get("content")
    if content is not None and content.kind == "error_in_200":
        return {"error": {"message": content.setting("message"), "code": "image_generation_failed"}}, headers
    if content is not None and content.kind == "wrong_json":
        return {"result": "done", "artifacts": images}, headers
    shape = hits["shape"].setting("shape") if "shape" in hits else order.model.shape
    if content is not None and content.kind == "bad_base64":
        body: dict[str, Any] = {"data": [{"url": None, "b64_json": "%%% no base64 %%%"} for _ in range(images)]}
    else:
        inline = response_shapes.needs_bytes(shape) or _wants_inline(order)
        made = [await _make(state, order, place, inline=inline, hits=hits) for place in range(images)]
        if shape in ("A", "B", "C", "D", "E"):
            body = response_shapes.answer(
                shape,
                made,
                model=order.model.id,
                prompt=order.prompt,
                seed=order.seed,
                seconds=time.monotonic() - call.began,
                now=state.clock(),
            )
        else:
            body = response_shapes.forced(shape, made)
    if "pictures" in hits and hits["pictures"].kind == "none":
        body |= dict.fromkeys(
            [name for name in ("data", "images") if name in body],
            [] if hits["pictures"].setting("value") == "empty" else None,
        )
    _flag(body, hits.get("flags"), images)
    said = _stated_in(hits)
    if said not in ("none", "nothing") and shape in ("A", "C", "D"):
        names = (said,) if said in ("usd_spent", "credits_used", "tokens_used") else ("credits_used", "usd_spent")
        body["meta"] = response_shapes.usage(usd, int(usd * CREDITS_PER_USD), names)
    return body, headers


def _stated_in(hits: Hits) -> str:
    """Say where the cost stands."""
    return str(hits["usage"].setting("usage")) if "usage" in hits else "all"


def _cost_headers(hits: Hits, usd: Decimal) -> dict[str, str]:
    if _stated_in(hits) not in ("all", "none"):
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


def _wants_inline(order: Order) -> bool:
    body = order.body
    return (
        body.get("convert_base64_to_url") is False
        or body.get("response_format") == "b64_json"
        or body.get("sync_mode") is True
    )


async def _make(state: State, order: Order, place: int, *, inline: bool, hits: Hits) -> response_shapes.Made:
    width, height = size_of(order.model, order.body)
    if "size" in hits:
        width = height = min(width, height)
    scale = state.settings.picture_scale
    picture_format = {"jpg": "jpeg", "tif": "tiff"}.get(
        name := str(order.body.get("output_format", order.model.format)), name
    )
    recipe = Recipe(
        model=order.model.id,
        prompt=order.prompt,
        seed=order.seed,
        width=max(8, round(width * scale)),
        height=max(8, round(height * scale)),
        index=place,
        format=picture_format,
        colors=order.colors,
    )
    rewritten = None
    if order.body.get("enhance_prompt", order.model.fields.get("enhance_prompt", {}).get("default")) is True:
        rewritten = f"{order.prompt}, {_FLOURISHES[(order.seed + place) % len(_FLOURISHES)]}"
    if inline:
        return response_shapes.Made(recipe, data=await state.draw(recipe), prompt=rewritten)
    sign = None
    now = state.clock()
    if (signing := hits.get("links")) is not None:
        seconds = signing.setting("seconds")

        def sign(path: str) -> tuple[str, float]:
            return signed_query(path, style=signing.setting("style"), now=now, seconds=seconds), now + seconds

    link = state.pictures.add(recipe, models=order.model.names, now=now, sign=sign)
    return response_shapes.Made(recipe, url=state.cdn_url + link, prompt=rewritten)
