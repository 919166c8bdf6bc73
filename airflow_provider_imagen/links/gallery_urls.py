"""
URLs of the gallery's pages, as paths on Airflow's web server.

Inside Airflow only the path of ``[api] base_url`` is used, never its host: the user may have logged in under another
host name, and the session is valid only there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from urllib.parse import SplitResult

MOUNT: Final = "/imagen"
"""Path of the gallery below the base path of Airflow's web server."""

AIRFLOW_APP: Final = "airflow_provider_imagen.airflow_app"
"""Key in the ASGI scope for the application that the gallery is mounted in."""

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_ORIGIN: Final = r"https?://[A-Za-z0-9.\-\[\]:]+"
"""An origin that is safe to put into a Content-Security-Policy header: no wildcards, no quotes, ASCII only."""

ImageSize = Literal["thumbnail", "full"]


def gallery_root() -> str:
    """Return the path of the gallery, including the base path from this machine's Airflow configuration."""
    from airflow.configuration import conf

    base_url = conf.get("api", "base_url", fallback="") or ""
    return urlsplit(base_url).path.rstrip("/") + MOUNT


def gallery_url() -> str | None:
    """Return the gallery's URL with its host, for e-mail and the like; ``None`` if ``[api] base_url`` is not set."""
    from airflow.configuration import conf

    base_url = conf.get("api", "base_url", fallback="") or ""
    return base_url.rstrip("/") + MOUNT if urlsplit(base_url).hostname else None


def task_address(*, root: str, dag_id: str, run_id: str, task_id: str, map_index: int = -1, **query: Any) -> str:
    """Return the URL of one task instance's images."""
    ids = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return _address(root, "task", ids | query)


def review_address(*, root: str, dag_id: str, run_id: str, task_id: str, map_index: int = -1, **query: Any) -> str:
    """Return the URL of the page where a person answers a waiting human-in-the-loop task."""
    ids = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return _address(root, "review", ids | query)


def sheet_address(*, root: str, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the URL of the contact sheet of one task instance."""
    return _address(root, "sheet", {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index})


def run_address(*, root: str, dag_id: str, run_id: str, **query: Any) -> str:
    """Return the URL of a DAG run's images."""
    return _address(root, "run", {"dag_id": dag_id, "run_id": run_id} | query)


def dag_address(*, root: str, dag_id: str, **query: Any) -> str:
    """Return the URL of the images of a DAG's runs."""
    return _address(root, "dag", {"dag_id": dag_id} | query)


def all_dags_address(*, root: str, **query: Any) -> str:
    """Return the URL of the page about all DAGs."""
    return _address(root, "dags", query)


def compare_address(*, root: str, dag_id: str, run_id: str, images: Sequence[str]) -> str:
    """
    Return the URL of a comparison of images of one run.

    :param images: ``task_id:map_index:prompt_index:image_index`` of each
    """
    return _address(root, "compare", {"dag_id": dag_id, "run_id": run_id, "image": images})


def matrix_address(*, root: str, dag_id: str, run_id: str, **query: Any) -> str:
    """Return the URL of a run's images by prompt and model."""
    return _address(root, "matrix", {"dag_id": dag_id, "run_id": run_id} | query)


def image_address(
    *,
    root: str,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    prompt_index: int,
    image_index: int,
    size: ImageSize | None = None,
    **query: Any,
) -> str:
    """
    Return the URL of one image's page, or with ``size``, of the image itself.

    :param prompt_index: index of the prompt in the task, from 0
    :param image_index: index of the image among those of its prompt, from 0
    """
    ids = {
        "dag_id": dag_id,
        "run_id": run_id,
        "task_id": task_id,
        "map_index": map_index,
        "prompt_index": prompt_index,
        "image_index": image_index,
    }
    return (
        _address(root, "picture", ids | query) if size is None else _address(root, "file", ids | {"size": size} | query)
    )


def remote_link(url: str | None) -> str | None:
    """Return the API's URL if a browser may load it (HTTPS, or loopback for the sandbox), else ``None``."""
    try:
        parts = urlsplit(url or "")
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:
        return None
    is_whole = parts.hostname and re.fullmatch(_ORIGIN, origin_of(parts)) and (url or "").isprintable()
    return url if is_safe and is_whole else None


def origin_of(parts: SplitResult) -> str:
    """Return the scheme, host and port of a URL."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _address(root: str, page: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{root}/{page}?{urlencode(given, doseq=True, quote_via=quote, safe='')}".removesuffix("?")
