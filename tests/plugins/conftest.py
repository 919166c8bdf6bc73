"""Airflow's real web application with the gallery, a DAG with images, and visitors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi.testclient import TestClient

Visit = Callable[..., "TestClient"]


@pytest.fixture(scope="module")
def airflow_app(_airflow_database: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Return a function that creates Airflow's web application, with an auth manager for restricted users."""
    import airflow.api_fastapi.app as module
    from airflow import plugins_manager

    from airflow_provider_imagen.plugins.gallery import shared_readers as gallery
    from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache
    from airflow_provider_imagen.plugins.imagen import ImagenPlugin

    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "restricted_auth_manager.RestrictedAuthManager")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ann:viewer,bob:viewer")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
        patch.setattr(gallery, "thumbnails", ThumbnailCache(tmp_path_factory.mktemp("previews", numbered=True)))
        # An installation from before the plugin existed lacks its entry point.
        patch.setattr(plugins_manager, "get_fastapi_plugins", lambda: (ImagenPlugin.fastapi_apps, []))

        def make(base_path: str) -> Any:
            if base_path not in made:
                patch.setattr(module, "API_ROOT_PATH", f"{base_path}/")
                made[base_path] = module.create_app(apps="core")
            return made[base_path]

        yield make
    module.purge_cached_app()


@pytest.fixture
def visit(airflow_app: Callable[[str], Any]) -> Iterator[Visit]:
    """Return a function that returns a client for a user, with the session cookie of a browser."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    def visit(
        name: str | None = "ann",
        *,
        role: str = "viewer",
        only: set[str] | None = None,
        without: set[tuple[str, Any]] | None = None,
        base_path: str = "",
    ) -> TestClient:
        client = TestClient(airflow_app(base_path), raise_server_exceptions=False, follow_redirects=False)
        if name is not None:
            user = SimpleAuthManagerUser(username=name, role=role)
            client.cookies.set("_token", get_auth_manager().generate_jwt(user))
            if only is not None:
                sys.modules["restricted_auth_manager"].RestrictedAuthManager.only[name] = only
            if without is not None:
                sys.modules["restricted_auth_manager"].RestrictedAuthManager.without[name] = without
        return client

    yield visit
    if (loaded := sys.modules.get("restricted_auth_manager")) is not None:  # not loaded if there was no visit
        loaded.RestrictedAuthManager.only.clear()
        loaded.RestrictedAuthManager.without.clear()


@dataclass
class Gallery:
    """A run with images, and the URLs of its gallery pages."""

    run: Any

    @property
    def ids(self) -> dict[str, str]:
        return {"dag_id": self.run.dag_id, "run_id": self.run.run_id}

    def task(self, task_id: str = "paint", **query: Any) -> tuple[str, dict[str, Any]]:
        return "/imagen/task", {**self.ids, "task_id": task_id, **query}

    def file(
        self, prompt: int = 0, image: int = 0, *, task_id: str = "paint", **query: Any
    ) -> tuple[str, dict[str, Any]]:
        return "/imagen/file", {**self.ids, "task_id": task_id, "prompt_index": prompt, "image_index": image, **query}

    def page(self, prompt: int = 0, image: int = 0, *, task_id: str = "paint") -> tuple[str, dict[str, Any]]:
        return "/imagen/picture", {**self.ids, "task_id": task_id, "prompt_index": prompt, "image_index": image}

    def xcom(self, key: str, task_id: str = "paint") -> Any:
        return self.run.get_task_instance(task_id).xcom_pull(task_ids=task_id, key=key)


@pytest.fixture
def painted(
    run_dag: Callable[..., Any], request: pytest.FixtureRequest, imagen_connection: str
) -> Callable[..., Gallery]:
    """Return a function that runs one task and returns the URLs of its gallery pages."""
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    numbers = iter(range(1000))

    def paint(dag_id: str | None = None, **arguments: Any) -> Gallery:
        name = dag_id or re.sub(r"\W+", "_", request.node.name)[:80] + f"_{next(numbers)}"
        with DAG(name, schedule=None) as dag:
            ImagenGenerateOperator(task_id="paint", retry_delay=timedelta(0), **arguments)
        return Gallery(run_dag(dag))

    return paint


@pytest.fixture
def forged(run_dag: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., Gallery]:
    """Return a function that runs a task that pushes arbitrary records to XCom."""
    from airflow.sdk import DAG, task

    def forge(images: Any, **summary: Any) -> Gallery:
        made = len(images) if isinstance(images, list) else 1
        counts = {"requested": made, "made": made, "usd_spent": 0.0, **summary}
        with DAG(re.sub(r"\W+", "_", request.node.name)[:80], schedule=None) as dag:

            @task
            def paint(ti: Any = None) -> None:
                ti.xcom_push(key="images", value=images)
                ti.xcom_push(key="summary", value=counts)

            paint()
        return Gallery(run_dag(dag))

    return forge
