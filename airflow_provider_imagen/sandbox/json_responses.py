"""JSON responses of the sandbox."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from starlette.requests import Request


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII, because prompts may contain lone surrogates, which UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class ProblemResponse(AsciiJSONResponse):
    """An error in the newer format, ``application/problem+json``."""

    media_type = "application/problem+json"


def with_etag(request: Request, response: AsciiJSONResponse, *, data: Any = None) -> Response:
    """
    Return a response with a weak ``ETag``, or a 304 if the request already has it.

    :param data: content that the tag depends on; default: the whole response
    """
    covered = response.body if data is None else response.render(data)
    tag = f'"{sha256(covered).hexdigest()[:27]}"'
    known = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
    response.headers["etag"] = f"W/{tag}"
    return Response(status_code=304, headers={"etag": f"W/{tag}"}) if known & {tag, "*"} else response
