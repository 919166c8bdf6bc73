"""The image host: files with range requests, and the faults of downloads."""

from __future__ import annotations

import asyncio
import re
import zlib
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from airflow_provider_imagen.sandbox.fault_responses import failing_answer, retry_after, xml_error
from airflow_provider_imagen.sandbox.json_responses import Json
from airflow_provider_imagen.sandbox.transport import Cut, Paced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from airflow_provider_imagen.sandbox.faults import Fault, Hits
    from airflow_provider_imagen.sandbox.image_store import Picture
    from airflow_provider_imagen.sandbox.state import State

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_ENDLESS_CHUNK = 64 * 1024


def cdn_app(state: State) -> Starlette:
    """Return the image host."""
    app = Starlette(
        routes=[
            Route("/hops/{hops:int}/{path:path}", _hop, methods=["GET", "HEAD"]),
            Route("/{path:path}", _picture, methods=["GET", "HEAD"]),
        ]
    )
    app.state.sandbox = state
    return app


async def _picture(request: Request) -> Any:
    state: State = request.app.state.sandbox
    picture = state.pictures.find(request.url.path)
    if picture is None:
        return xml_error(404, "NoSuchKey", "The specified key does not exist.")
    if picture.query is not None and (refusal := _check_signature(request, picture, now=state.clock())):
        return refusal
    hits = state.faults.hits("download", prompt=picture.recipe.prompt, models=picture.models)
    if "before" in hits:
        await asyncio.sleep(hits["before"].setting("seconds"))
    if "end" in hits and hits["end"].kind != "cut_image":
        return await _end(hits["end"], request, state)
    return await _deliver(request, picture, hits)


async def _hop(request: Request) -> Any:
    """Answer one step of a chain of redirects, which ends with the image."""
    hops, path = request.path_params["hops"], request.path_params["path"]
    if hops > 0:
        return RedirectResponse(f"/hops/{hops - 1}/{path}", 302)
    picture = request.app.state.sandbox.pictures.find(f"/{path}")
    return (
        xml_error(404, "NoSuchKey", "The specified key does not exist.")
        if picture is None
        else await _deliver(request, picture, {})
    )


def _check_signature(request: Request, picture: Picture, *, now: float) -> Response | None:
    if request.method == "HEAD" or request.url.query != picture.query:
        return xml_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
    if picture.expires_at is not None and now >= picture.expires_at:
        return xml_error(403, "AccessDenied", "Request has expired.")
    return None


async def _deliver(request: Request, picture: Picture, hits: Hits) -> Any:
    state: State = request.app.state.sandbox
    data = await state.draw(picture.recipe)
    etag = f'"{sha256(data).hexdigest()[:32]}"'
    content_type = picture.recipe.content_type
    if "content" in hits:
        other = "image/jpeg" if content_type == "image/png" else "image/png"
        content_type = hits["content"].setting("content_type") or other
    headers = {"content-type": content_type, "etag": etag, "cache-control": "public, max-age=31536000"}
    status, part = 200, slice(0, len(data))
    if picture.ranges and "ranges" not in hits:
        headers["accept-ranges"] = "bytes"
        asked = request.headers.get("range")
        if asked is not None and request.headers.get("if-range", etag) == etag and _RANGE.fullmatch(asked):
            if (found := _range(asked, len(data))) is None:
                return Response(None, 416, {**headers, "content-range": f"bytes */{len(data)}"})
            status, part = 206, found
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
    body = data[part]
    if (cut := hits.get("end")) is not None:
        picture.ranges = bool(cut.setting("ranges"))
        sent = len(body) // 2 if cut.bytes_sent is None else min(cut.bytes_sent, len(body) - 1)
        return Cut(body[:sent], content_length=len(body), status=status, headers=headers)
    if (drip := hits.get("pace")) is not None:
        pieces = _pieces(body, drip.setting("chunk_bytes"))
        return Paced(pieces, seconds=drip.setting("seconds"), content_length=len(body), status=status, headers=headers)
    if request.method == "HEAD":
        return Response(None, status, {**headers, "content-length": str(len(body))})
    return Response(body, status, headers)


def _range(asked: str, size: int) -> slice | None:
    """Return a single range as a slice; ``None`` when it cannot be satisfied."""
    match = _RANGE.fullmatch(asked)
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, stop = max(0, size - int(last or 0)), size
    return slice(start, stop) if start < stop else None


async def _pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _endless() -> AsyncIterator[bytes]:
    yield b"\x89PNG\r\n\x1a\n"
    chunk = bytes(_ENDLESS_CHUNK)
    while True:
        yield chunk


async def _end(fault: Fault, request: Request, state: State) -> Any:
    now = state.clock()
    if fault.kind == "status":
        return xml_error(fault.setting("status"), "InternalError", "Please try again.", retry_after(fault, now=now))
    if fault.kind == "expired":
        status = fault.setting("status")
        code, text = (
            ("AccessDenied", "Request has expired.") if status in (401, 403) else ("NoSuchKey", "The key is gone.")
        )
        return xml_error(status, code, text)
    if fault.kind == "redirect":
        return _redirect(fault, request, state)
    if fault.kind == "not_an_image":
        return Json({"detail": "this is no picture"}, media_type="image/png")
    if fault.kind == "oversized":
        return Paced(_endless(), content_length=fault.content_length, headers={"content-type": "image/png"})
    if fault.kind == "bomb":
        data = await asyncio.get_running_loop().run_in_executor(state.artists, bomb, fault.setting("pixels"))
        return Response(data, media_type="image/png")
    return failing_answer(fault, path=request.url.path, now=now)


def _redirect(fault: Fault, request: Request, state: State) -> Response:
    path = request.url.path
    targets = {
        None: f"/hops/{fault.setting('hops') - 1}{path}",
        "private": "http://169.254.169.254/latest/meta-data/",
        "other_port": f"{state.api_url}/v1/key",
        "scheme": "file:///etc/passwd",
        "downgrade": f"http://{request.url.hostname}{path}",
        "loop": path,
    }
    return RedirectResponse(targets.get(fault.location, fault.location or path), 302)


@cache
def bomb(pixels: int) -> bytes:
    """Return a small, valid PNG with so many pixels a side, of one colour: one bit each, compressed row by row."""
    row = bytes(1 + (pixels + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(pixels)) + packer.flush()
    header = pixels.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
