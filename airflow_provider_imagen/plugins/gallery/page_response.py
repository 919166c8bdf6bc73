"""Pages as responses, and errors that say what is wrong with a URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from airflow_provider_imagen.plugins.gallery.pages import Pager, Pages, image_sources
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

if TYPE_CHECKING:
    from collections.abc import Callable


class ExplainedError(HTTPException):
    """An error whose message is for the visitor."""


class MissingError(ExplainedError):
    """The URL names something that does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(404, message)


def gallery_root(request: Request) -> str:
    """Return the path the gallery is mounted at, including the base path."""
    return str(request.scope.get("root_path", ""))


def page_response(
    request: Request, template: str, *, status: int = 200, images: list[GalleryImage] | None = None, **values: Any
) -> Response:
    """Return a rendered page whose security policy allows only its own style, script, images and refreshes."""
    sections = values.get("sections", ())
    shown = images or [entry for part in sections for entry in part.entries if isinstance(entry, GalleryImage)]
    sources = image_sources(shown)
    policy = (
        f"default-src 'none'; img-src {sources}; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    )
    html = Pages(gallery_root(request)).render(template, image_sources=sources, **values)
    return HTMLResponse(html, status_code=status, headers={"Content-Security-Policy": policy})


def pager_for(number: int, items: int, per_page: int, address: Callable[[int], str]) -> Pager:
    """Return the pager of a list, at one of its pages; a number beyond the last page stands for the last one."""
    count = max(-(-items // per_page), 1)
    return Pager(min(number, count), count, address)
