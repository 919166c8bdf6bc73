"""The sandbox's page at ``/``: connection, charges, images, and forms to inject faults. It needs no JavaScript."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.sandbox.control_routes import CONTROL_PREFIX
from airflow_provider_imagen.sandbox.drawing import thumbnail
from airflow_provider_imagen.sandbox.envelopes import timestamp
from airflow_provider_imagen.sandbox.fault_syntax import describe_kinds, format_fault, parse_fault
from airflow_provider_imagen.sandbox.faults import COMMON_PARAMETERS
from airflow_provider_imagen.sandbox.local_requests import is_from_own_page

if TYPE_CHECKING:
    from jinja2 import Template
    from starlette.requests import Request

    from airflow_provider_imagen.sandbox.state import State

CHARGES_SHOWN = 50
IMAGES_SHOWN = 24
FAULTS_SHOWN = 20
CHARACTERS_SHOWN = 300
_THUMBNAIL_PIXELS = 400

FAULT_BUTTONS = {
    "Next generation": {
        "Error 500": "status",
        "Error 429, retry after 5 s": "status:status=429,retry_after=5",
        "Out of credits": "status:status=403,error_kind=err_insufficent_credits",
        "Wait 10 s": "slow:seconds=10",
        "Connection reset": "reset",
        "Connection reset, billed": "reset:billed=true",
        "No image, billed": "none",
    },
    "Next download": {
        "Error 503": "status:on=download,status=503",
        "URL expired": "expired",
        "Image truncated": "cut_image",
        "Not an image": "not_an_image",
    },
}
"""Buttons by heading: their labels and faults."""

_STATIC = f"{CONTROL_PREFIX}static"
_THUMBNAILS = f"{CONTROL_PREFIX}thumbnails"
_STATIC_TYPES = {"page.css": "text/css", "icon.svg": "image/svg+xml"}


def page_routes() -> list[Route]:
    """Return the routes of the page."""
    return [
        Route("/", _show),
        Route("/", _submit, methods=["POST"]),
        Route(f"{_STATIC}/{{name}}", _static),
        Route(f"{_THUMBNAILS}/{{path:path}}", _thumbnail),
    ]


async def _show(request: Request) -> Response:
    return _page(request.app.state.sandbox)


async def _submit(request: Request) -> Response:
    """Do what a form of the page asks for: inject the fault in ``fault``, or the ``action`` clear or reset."""
    state: State = request.app.state.sandbox
    if not is_from_own_page(request.headers):
        return PlainTextResponse("This form only works on the sandbox's own page.", 403)
    form = dict(parse_qsl((await request.body()).decode("latin-1"), keep_blank_values=True))
    if "fault" in form:
        try:
            state.faults.add(parse_fault(form["fault"].strip()))
        except ValueError as error:
            return _page(state, error=str(error), rejected=form["fault"])
    elif form.get("action") == "clear":
        state.faults.clear()
    elif form.get("action") == "reset":
        state.reset()
    return RedirectResponse("/", 303)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC_TYPES:
        return PlainTextResponse("Not found", 404)
    content = files("airflow_provider_imagen.sandbox").joinpath("static", name).read_bytes()
    return Response(content, media_type=_STATIC_TYPES[name])


async def _thumbnail(request: Request) -> Response:
    """
    Return a small version of an image, by the path of its URL.

    On the image host it would be a download, to which faults apply. And a content security policy cannot name a host
    with an IPv6 address.
    """
    state: State = request.app.state.sandbox
    image = state.images.find(f"/{request.path_params['path']}")
    if image is None:
        return PlainTextResponse("Not found", 404)
    data = await state.draw(image.recipe)
    loop = asyncio.get_running_loop()
    small = await loop.run_in_executor(state.draw_threads, thumbnail, data, _THUMBNAIL_PIXELS)
    return Response(small, headers={"cache-control": "private, max-age=86400"}, media_type="image/jpeg")


def _page(state: State, *, error: str = "", rejected: str = "") -> Response:
    """
    Return the page.

    :param error: why a fault was rejected
    :param rejected: the fault as it was typed
    """
    charges, faults = state.account.charges(), state.faults.armed()
    html = _template().render(
        state=state,
        static=_STATIC,
        thumbnails=_THUMBNAILS,
        charges=charges[: -CHARGES_SHOWN - 1 : -1],
        charge_count=len(charges),
        usd_spent=sum(charge.usd for charge in charges),
        images=state.images.newest(IMAGES_SHOWN),
        image_count=len(state.images),
        faults=[format_fault(fault) for fault in faults[:FAULTS_SHOWN]],
        fault_count=len(faults),
        buttons=FAULT_BUTTONS,
        kinds=list(describe_kinds()),
        common_parameters=COMMON_PARAMETERS,
        error=error,
        rejected=rejected,
    )
    headers = {
        "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "referrer-policy": "same-origin",  # with no-referrer, browsers would send forms with "Origin: null"
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
    content = html.encode("utf-8", "backslashreplace")  # prompts may contain lone surrogates
    return HTMLResponse(content, 400 if error else 200, headers)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not needed unless somebody opens the page

    environment = Environment(
        loader=PackageLoader("airflow_provider_imagen.sandbox"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": _shorten, "usd": format_usd, "time": timestamp}
    return environment.get_template("page.html")


def _shorten(text: str, characters: int = CHARACTERS_SHOWN) -> str:
    return text if len(text) <= characters else f"{text[:characters]}…"
