"""
A server with the API's interface and next to no cost of its own: ``python -m benchmarks.server``.

Its images are real PNGs of 1024x1024 pixels and 1.6 MB, as large as Imagen's, generated once at startup; small ones of
64x64 pixels serve benchmarks in which image size does not matter. The latency can be set while it runs. It counts its
responses, so that a benchmark can prove that nothing was left out or requested twice. The sandbox is not used because
it draws each image, which would dominate the measurement.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import sys
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PICTURES = 4


@dataclass
class Behaviour:
    """
    How the server responds until changed.

    :param latency_seconds: how long a paid request takes
    :param side_pixels: 1024, or 64 for small images
    :param refuses_after: paid requests served before the key is refused, ``None`` = all
    """

    latency_seconds: float = 0.0
    side_pixels: int = 1024
    refuses_after: int | None = None


@dataclass
class Counts:
    """Counts of the server's work since its behaviour was last set."""

    answered: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    first_asked_at: float | None = None


def draw(side_pixels: int, seed: int) -> bytes:
    """Draw a PNG whose noise does not compress below half of it: 1.6 MB for 1024x1024 pixels."""
    from PIL import Image

    noise = random.Random(seed).randbytes(side_pixels * side_pixels * 3)
    pixels = noise.translate(bytes(64 + seed + (value & 15) for value in range(256)))  # leaves four bits of noise
    out = BytesIO()
    Image.frombytes("RGB", (side_pixels, side_pixels), pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


class Service:
    """The routes, their responses and their counts."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.counts = Counts()
        self._numbers = count(1)
        self.images = {side: [draw(side, seed) for seed in range(PICTURES)] for side in (1024, 64)}

    async def generate(self, request: Request) -> Response:
        """Respond to a paid request after the set latency: ``POST /v1/images/generations``."""
        from starlette.responses import Response

        body = json.loads(await request.body())
        counts, behaviour = self.counts, self.behaviour
        counts.first_asked_at = counts.first_asked_at or time.time()
        if behaviour.refuses_after is not None and counts.answered >= behaviour.refuses_after:
            return Response('{"message": "The key was refused."}', 401, media_type="application/json")
        counts.answered += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        await asyncio.sleep(behaviour.latency_seconds)
        counts.in_flight -= 1
        number = next(self._numbers)
        images = int(body.get("num_images", 1))
        data: list[dict[str, Any]] = [{"mime_type": "image/png"} for _ in range(images)]
        for place, item in enumerate(data):
            if body.get("convert_base64_to_url") is False:
                item["b64_json"] = base64.b64encode(self._picture(number)).decode()
            else:
                item["url"] = f"{str(request.base_url).rstrip('/')}/pictures/{number}-{place}.png"
        usage = {"credits_used": 84_000 * images, "usd_spent": 0.042 * images}
        return Response(
            json.dumps({"data": data, "meta": {"usage": usage}}),
            media_type="application/json",
            headers={
                "x-inference-id": f"inference-{number}",
                "x-client-request-id": request.headers.get("x-client-request-id", ""),
            },
        )

    async def picture(self, request: Request) -> Response:
        """Return an image: ``GET /pictures/…``."""
        from starlette.responses import Response

        return Response(self._picture(int(request.path_params["name"].partition("-")[0])), media_type="image/png")

    def _picture(self, number: int) -> bytes:
        return self.images[self.behaviour.side_pixels][number % PICTURES]

    async def nothing(self, _: Request) -> Response:
        """Respond to a task's lookups with an empty list."""
        from starlette.responses import JSONResponse

        return JSONResponse({"data": [], "pagination": {"has_more": False}})

    async def control(self, request: Request) -> Response:
        """Return and reset the counts, and set the behaviour from now on: ``POST /control``."""
        from starlette.responses import JSONResponse

        counted, self.counts = self.counts, Counts()
        self.behaviour = Behaviour(**json.loads(await request.body()))
        return JSONResponse(asdict(counted))

    def app(self) -> Any:
        """Build the application."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/v1/images/generations", self.generate, methods=["POST"]),
                Route("/pictures/{name}", self.picture),
                Route("/control", self.control, methods=["POST"]),
                Route("/v1/{rest:path}", self.nothing),
                Route("/v2/{rest:path}", self.nothing),
            ]
        )


def main() -> None:
    """Serve on a free loopback port, print it, and run until the process is ended."""
    import uvicorn

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        app = Service().app()
        print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=120)
        uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    sys.exit(main())
