"""
The plugin that puts the gallery into Airflow's UI.

Every process that loads plugins imports this module, task processes too, so it holds no more than names. The web
application itself is imported by the web server, when somebody first asks for a page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_imagen.links.gallery_link import PicturesLink
from airflow_provider_imagen.links.gallery_urls import MOUNT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from airflow.sdk import BaseOperator

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]

AIRFLOW_APP = "airflow_provider_imagen.airflow_app"
"""Key of the ASGI scope under which the gallery finds the web application it is mounted in."""


class LazyGallery:
    """The gallery as an ASGI application that is imported when it is first called."""

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Hand a request on, together with the application it came through."""
        from airflow_provider_imagen.plugins.gallery.app import app

        scope[AIRFLOW_APP] = scope["app"]
        await app(scope, receive, send)


class LinkOfOurOperators(PicturesLink):
    """The button "Pictures", made by the web server, so that no task has to store it (Airflow: links via plugins)."""

    @property
    def operators(self) -> list[type[BaseOperator]]:  # type: ignore[override]
        """The operators it is for; the web server asks when it first reads a DAG, and only then they are loaded."""
        from airflow_provider_imagen.decorators.imagen import _ImagenDecoratedOperator
        from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

        return [ImagenGenerateOperator, _ImagenDecoratedOperator]


class ImagenPlugin(AirflowPlugin):
    """
    The gallery, the tabs "Pictures" of a DAG and of a DAG run, and the button "Pictures" of a task.

    The addresses of the tabs are relative: the browser puts the base path of the web server in front.
    """

    name = "imagen"
    fastapi_apps: list[Any] = [{"name": "imagen", "app": LazyGallery(), "url_prefix": MOUNT}]  # noqa: RUF012 (the same)
    operator_extra_links: list[Any] = [LinkOfOurOperators()]  # noqa: RUF012 (the same)
    external_views: list[Any] = [  # noqa: RUF012 (Airflow's base class declares it so)
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
