"""
The plugin that adds the gallery to Airflow's UI.

Every process that loads plugins imports this module, task processes included, so it stays light. Only the web server
imports the web application, on the first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_imagen.links.gallery_link import PicturesLink
from airflow_provider_imagen.links.gallery_urls import AIRFLOW_APP, MOUNT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from airflow.sdk import BaseOperator

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]


class LazyGallery:
    """The gallery as an ASGI application that is imported on the first request."""

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Pass a request to the gallery, along with the application that it is mounted in."""
        from airflow_provider_imagen.plugins.gallery.routes import app

        scope[AIRFLOW_APP] = scope["app"]
        await app(scope, receive, send)


class GalleryButton(PicturesLink):
    """The "Pictures" button, built by the web server, so that tasks of our own operators need not store its URL."""

    @property
    def operators(self) -> list[type[BaseOperator]]:  # type: ignore[override]
        """Operators with this button; imported only when the web server reads its first DAG."""
        from airflow_provider_imagen.decorators.imagen import _ImagenDecoratedOperator
        from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

        return [ImagenGenerateOperator, _ImagenDecoratedOperator]


class ImagenPlugin(AirflowPlugin):
    """
    The gallery, its entry "Pictures" in the navigation, the tabs "Pictures" of a DAG and of a run, and a task's button.

    The URLs are relative: the browser resolves them against the web server's base path.
    """

    name = "imagen"
    fastapi_apps: list[Any] = [{"name": "imagen", "app": LazyGallery(), "url_prefix": MOUNT}]  # noqa: RUF012 (as below)
    operator_extra_links: list[Any] = [GalleryButton()]  # noqa: RUF012 (as below)
    external_views: list[Any] = [  # noqa: RUF012 (Airflow's base class declares it so)
        {
            "name": "Pictures",
            "href": f"{MOUNT.removeprefix('/')}/dags",
            "destination": "nav",
            "nav_top_level": True,  # 3.3; before, it shares the menu "Plugins" with the entries of other plugins
            "icon": f"{MOUNT.removeprefix('/')}/static/pictures.svg",
            "url_route": "imagen_pictures",
        },
        {
            "name": "Pictures",
            "href": f"{MOUNT.removeprefix('/')}/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "imagen_run_pictures",
        },
        {
            "name": "Pictures",
            "href": f"{MOUNT.removeprefix('/')}/dag?dag_id={{DAG_ID}}",
            "destination": "dag",
            "url_route": "imagen_dag_pictures",
        },
    ]
