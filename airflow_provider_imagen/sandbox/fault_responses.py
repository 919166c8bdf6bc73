"""Responses to requests with a fault, in place of the regular response."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, Response

from airflow_provider_imagen.sandbox.envelopes import error_body
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse
from airflow_provider_imagen.sandbox.transport import Hang, Reset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_imagen.sandbox.faults import Fault

_MESSAGES = {
    401: "This request requires a valid API key.",
    403: "This action is not allowed.",
    404: "Not found.",
    429: "Too many requests.",
    500: "A partner returned an error.",
    502: "Bad gateway.",
    503: "The service is unavailable.",
    504: "Generation timeout",
}


def fault_response(fault: Fault, *, path: str, now: float, headers: Mapping[str, str] | None = None) -> Any:
    """
    Return the ASGI application that responds instead of the regular one.

    :param fault: of kind ``status`` ``upstream_4xx`` ``html`` ``hang`` ``reset`` ``withdrawn``
    :param headers: added to responses of the API itself, but not to those of a gateway
    """
    if fault.kind == "reset":
        return Reset()
    if fault.kind == "hang":
        return Hang(fault.setting("seconds"))
    status = fault.setting("status")
    if fault.kind == "html":
        return HTMLResponse(_gateway_page(status), status)
    if fault.kind == "withdrawn":
        return AsciiJSONResponse(error_body(404, f"Model {fault.model} not found", path=path, now=now), 404, headers)
    if fault.kind == "upstream_4xx":
        text = f"{status} {fault.setting('message')}"
        return AsciiJSONResponse(error_body(500, text, path=path, now=now, envelope="problem"), 500, headers)
    body = error_body(
        status,
        fault.setting("message") or _MESSAGES.get(status, "The request failed."),
        path=path,
        now=now,
        envelope=fault.setting("envelope"),
        error_kind=fault.setting("error_kind"),
        status_as_text=fault.setting("status_as_text"),
    )
    problem = fault.setting("envelope") == "problem"
    return AsciiJSONResponse(
        body,
        status,
        {**(headers or {}), **retry_after(fault, now=now)},
        media_type="application/problem+json" if problem else None,
    )


def retry_after(fault: Fault, *, now: float) -> dict[str, str]:
    """Return the ``Retry-After`` header of a fault, in seconds or as a date; empty if it has none."""
    seconds = fault.setting("retry_after")
    if seconds is None:
        return {}
    return {"retry-after": formatdate(now + seconds, usegmt=True) if fault.retry_after_as_date else f"{seconds:g}"}


def xml_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the format of an object store."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(text, status, headers, media_type="application/xml")


def _gateway_page(status: int) -> str:
    return (
        f"<!DOCTYPE html>\n<html><head><title>{status}</title></head>"
        f"<body><center><h1>{status}</h1></center><hr><center>gateway</center></body></html>\n"
    )
