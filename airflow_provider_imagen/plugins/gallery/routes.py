"""
The gallery's web application: its routes, security headers, error pages and static files.

Every route that shows data of a DAG first checks that the visitor may read that DAG's XComs. The page about all DAGs
shows only those that pass the same checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_imagen.plugins.gallery import file_routes, list_routes, look_routes
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.plugins.gallery.page_response import ExplainedError, gallery_root, page_response
from airflow_provider_imagen.plugins.gallery.pages import STATIC_TYPES, Pages, read_static

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

app = FastAPI(title="Pictures", docs_url=None, redoc_url=None, openapi_url=None)


@app.middleware("http")
async def add_security_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Add security headers that forbid everything a page or image does not need."""
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; sandbox")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response


@app.exception_handler(StarletteHTTPException)
async def show_error(request: Request, error: StarletteHTTPException) -> Response:
    """Return an error page or a plain-text error, or redirect to the login page."""
    is_page = not request.url.path.endswith("/file")
    if error.status_code == 401 and is_page and "authorization" not in request.headers:
        base = gallery_root(request).rpartition("/")[0]
        here = f"{request.url.path}?{request.url.query}"
        return RedirectResponse(f"{base}/api/v2/auth/login?next={quote(here, safe='')}", status_code=302)
    message = {
        401: "You are not logged in.",
        403: "You do not have permission to see the images of this DAG.",
        404: "There is no such image or page.",
        422: "This URL is incomplete or invalid.",
        502: "Airflow's API returned an error. Try again in a moment.",
    }.get(error.status_code, "Something went wrong.")
    if isinstance(error, ExplainedError):
        message = error.detail
    if not is_page:
        return Response(
            error.detail if error.status_code == 410 else message, error.status_code, media_type="text/plain"
        )
    back = _way_back(request) if isinstance(error, ExplainedError) else None
    return page_response(
        request, "message.html", status=error.status_code, title="Pictures", message=message, back=back
    )


def _way_back(request: Request) -> tuple[str, str] | None:
    """Return the text and URL of a link from a page that cannot be shown to the one above it; ``None`` without one."""
    pages, ids = Pages(gallery_root(request)), request.query_params
    place = request.url.path.rpartition("/")[2]
    if place == "download":
        place = "sheet" if "task_id" in ids else "task"
    match place:
        case "picture" | "sheet":
            ti = TaskInstance(ids["dag_id"], ids["run_id"], ids["task_id"], int(ids.get("map_index", -1)))
            return "All images of this task", pages.task(ti)
        case "task" | "review" | "compare" | "matrix":
            return "All images of this run", pages.run(ids["dag_id"], ids["run_id"])
        case "run":
            return "All runs of this DAG", pages.dag(ids["dag_id"])
    return None


@app.exception_handler(RequestValidationError)
async def show_invalid_request(request: Request, _: RequestValidationError) -> Response:
    """Return an error page for invalid parameters, without echoing them."""
    return await show_error(request, HTTPException(422))


@app.get("/static/{name}")
async def send_static(name: str) -> Response:
    """Send a style sheet, a script or the icon; public, since they hold no data."""
    data = read_static(name)
    if data is None:
        raise HTTPException(404)
    return Response(data, headers={"Content-Type": STATIC_TYPES[name], "Cache-Control": "public, max-age=86400"})


for routes in (list_routes, look_routes, file_routes):
    app.include_router(routes.router)
