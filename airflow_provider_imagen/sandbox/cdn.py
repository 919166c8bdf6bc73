"""The image host and its download faults."""

from __future__ import annotations

import asyncio
import zlib
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from airflow_provider_imagen.sandbox.fault_responses import fault_response, retry_after, xml_error
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse
from airflow_provider_imagen.sandbox.transport import Paced, Truncated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from airflow_provider_imagen.sandbox.faults import Fault, Hits
    from airflow_provider_imagen.sandbox.image_store import StoredImage
    from airflow_provider_imagen.sandbox.state import State

_ENDLESS_CHUNK = 64 * 1024


def cdn_app(state: State) -> Starlette:
    """Return the image host."""
    app = Starlette(
        routes=[
            Route("/hops/{hops:int}/{path:path}", _hop, methods=["GET", "HEAD"]),
            Route("/{path:path}", _image, methods=["GET", "HEAD"]),
        ]
    )
    app.state.sandbox = state
    return app


async def _image(request: Request) -> Any:
    state: State = request.app.state.sandbox
    image = state.images.find(request.url.path)
    if image is None:
        return xml_error(404, "NoSuchKey", "The specified key does not exist.")
    if image.query is not None and (error := _check_signature(request, image, now=state.clock())):
        return error
    hits = state.faults.hits("download", prompt=image.recipe.prompt, models=image.models)
    if "before" in hits:
        await asyncio.sleep(hits["before"].setting("seconds"))
    if "end" in hits and hits["end"].kind != "cut_image":
        return await _failing_response(hits["end"], request, state)
    return await _deliver(request, image, hits)


async def _hop(request: Request) -> Any:
    """Return the next redirect of a chain, or the image at its end."""
    hops, path = request.path_params["hops"], request.path_params["path"]
    if hops > 0:
        return RedirectResponse(f"/hops/{hops - 1}/{path}", 302)
    image = request.app.state.sandbox.images.find(f"/{path}")
    return (
        xml_error(404, "NoSuchKey", "The specified key does not exist.")
        if image is None
        else await _deliver(request, image, {})
    )


def _check_signature(request: Request, image: StoredImage, *, now: float) -> Response | None:
    if request.method == "HEAD" or request.url.query != image.query:
        return xml_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
    if image.expires_at is not None and now >= image.expires_at:
        return xml_error(403, "AccessDenied", "Request has expired.")
    return None


async def _deliver(request: Request, image: StoredImage, hits: Hits) -> Any:
    state: State = request.app.state.sandbox
    data = await state.draw(image.recipe)
    content_type = image.recipe.content_type
    if "content" in hits:
        other = "image/jpeg" if content_type == "image/png" else "image/png"
        content_type = hits["content"].setting("content_type") or other
    etag = f'"{sha256(data).hexdigest()[:32]}"'
    headers = {"content-type": content_type, "etag": etag, "cache-control": "public, max-age=31536000"}
    if (cut := hits.get("end")) is not None:
        sent = len(data) // 2 if cut.bytes_sent is None else min(cut.bytes_sent, len(data) - 1)
        return Truncated(data[:sent], content_length=len(data), headers=headers)
    if (drip := hits.get("pace")) is not None:
        chunks = _chunks(data, drip.setting("chunk_bytes"))
        return Paced(chunks, seconds=drip.setting("seconds"), content_length=len(data), headers=headers)
    if request.method == "HEAD":
        return Response(None, headers={**headers, "content-length": str(len(data))})
    return Response(data, headers=headers)


async def _chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _endless() -> AsyncIterator[bytes]:
    yield b"\x89PNG\r\n\x1a\n"
    chunk = bytes(_ENDLESS_CHUNK)
    while True:
        yield chunk


async def _failing_response(fault: Fault, request: Request, state: State) -> Any:
    now = state.clock()
    if fault.kind == "status":
        return xml_error(fault.setting("status"), "InternalError", "Please try again.", retry_after(fault, now=now))
    if fault.kind == "expired":
        status = fault.setting("status")
        code, text = (
            ("AccessDenied", "Request has expired.")
            if status in (401, 403)
            else ("NoSuchKey", "The specified key does not exist.")
        )
        return xml_error(status, code, text)
    if fault.kind == "redirect":
        return _redirect(fault, request, state)
    if fault.kind == "not_an_image":
        return AsciiJSONResponse({"detail": "This is not an image."}, media_type="image/png")
    if fault.kind == "oversized":
        return Paced(_endless(), content_length=fault.content_length, headers={"content-type": "image/png"})
    if fault.kind == "bomb":
        data = await asyncio.get_running_loop().run_in_executor(state.draw_threads, bomb, fault.setting("pixels"))
        return Response(data, media_type="image/png")
    return fault_response(fault, path=request.url.path, now=now)


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
    """
    Return a small, valid PNG of one colour and bit depth 1, compressed row by row.

    :param pixels: width and height
    """
    row = bytes(1 + (pixels + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(pixels)) + packer.flush()
    header = pixels.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
