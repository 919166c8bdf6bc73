"""JSON responses."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from starlette.requests import Request


class Json(JSONResponse):
    """JSON in ASCII, so that a prompt with a lone surrogate, which JSON allows, can be returned."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class Problem(Json):
    """An error in the newer form, ``application/problem+json``."""

    media_type = "application/problem+json"


def unless_known(request: Request, answer: Json, *, data: Any = None) -> Response:
    """
    Add a weak ``ETag`` to a response, or return 304 when the request already names it.

    :param data: what the tag covers; default: the whole response
    """
    covered = answer.body if data is None else answer.render(data)
    tag = f'"{sha256(covered).hexdigest()[:27]}"'
    known = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
    answer.headers["etag"] = f"W/{tag}"
    return Response(status_code=304, headers={"etag": f"W/{tag}"}) if known & {tag, "*"} else answer
