"""The gallery's pages: template data, URLs and rendering."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import parse_qsl, quote, urlsplit
from zoneinfo import ZoneInfo

from airflow.configuration import conf
from jinja2 import Environment, PackageLoader, StrictUndefined

from airflow_provider_imagen.links.gallery_urls import (
    compare_address,
    dag_address,
    image_address,
    matrix_address,
    origin_of,
    remote_link,
    run_address,
    task_address,
)
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.plugins.gallery.image_ids import image_id
from airflow_provider_imagen.plugins.gallery.image_search import MAX_QUERY_CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import tzinfo

    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
    from airflow_provider_imagen.plugins.gallery.run_results import RunResults
    from airflow_provider_imagen.plugins.gallery.task_results import Entry, GalleryImage

_CSS: Final = "text/css; charset=utf-8"
_JAVASCRIPT: Final = "text/javascript; charset=utf-8"
STATIC_TYPES: Final = {
    "gallery.css": _CSS,
    "look.css": _CSS,
    "gallery.js": _JAVASCRIPT,
    "live.js": _JAVASCRIPT,
    "zoom.js": _JAVASCRIPT,
    "lightbox.js": _JAVASCRIPT,
}


@dataclass(frozen=True)
class Pager:
    """
    The position of a page among its siblings.

    :param number: page number, from 1
    :param count: number of pages, at least 1
    :param addresses: URLs of the neighbouring pages by page number
    """

    number: int
    count: int
    addresses: Mapping[int, str]

    @property
    def previous(self) -> str | None:
        """URL of the previous page."""
        return self.addresses.get(self.number - 1)

    @property
    def next(self) -> str | None:
        """URL of the next page."""
        return self.addresses.get(self.number + 1)


@dataclass(frozen=True)
class SearchForm:
    """
    The search form of a page.

    :param address: URL of the page without a search
    :param query: the words searched for; empty for no search
    :param found: number of images found
    """

    address: str
    query: str
    found: int
    max_characters: ClassVar[int] = MAX_QUERY_CHARACTERS

    @property
    def action(self) -> str:
        """URL that the form is sent to, without its query string, which browsers would drop."""
        return urlsplit(self.address).path

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names and values of the query string, for hidden fields."""
        return parse_qsl(urlsplit(self.address).query)


@dataclass(frozen=True)
class Section:
    """
    Images under one heading, and what is missing.

    :param title: heading; empty for none
    :param href: link target of the heading
    :param results: results of the run that the section is about; ``None`` if it is not about a run
    :param entries: what the grid shows
    :param count: number of images, of which the entries may be a part
    :param notes: sentences under the heading
    """

    title: str = ""
    href: str | None = None
    results: RunResults | None = None
    entries: list[Entry] = field(default_factory=list)
    count: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """Number of images among the entries."""
        return sum(entry.card == "image" for entry in self.entries)


class Pages:
    """
    Renders pages, and builds the URLs in them.

    :param root: path of the gallery, including the base path (``/airflow/imagen``)
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._base = root.rpartition("/")[0]

    def render(self, template: str, **values: Any) -> str:
        """Return a rendered template; all values are escaped."""
        return (
            _environment().get_template(template).render(root=self._root, link=self, assets=_asset_versions(), **values)
        )

    def dag(self, dag_id: str, **query: Any) -> str:
        """Return the URL of a DAG's images."""
        return dag_address(root=self._root, dag_id=dag_id, **query)

    def run(self, dag_id: str, run_id: str, **query: Any) -> str:
        """Return the URL of a run's images."""
        return run_address(root=self._root, dag_id=dag_id, run_id=run_id, **query)

    def task(self, ti: TaskInstance, **query: Any) -> str:
        """Return the URL of a task instance's images."""
        return task_address(
            root=self._root, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index, **query
        )

    def compare(self, images: Sequence[GalleryImage]) -> str:
        """Return the URL of a comparison of images of one run."""
        ti = images[0].ti
        ids = [image_id(image) for image in images]
        return compare_address(root=self._root, dag_id=ti.dag_id, run_id=ti.run_id, images=ids)

    def matrix(self, dag_id: str, run_id: str, **query: Any) -> str:
        """Return the URL of a run's images by prompt and model."""
        return matrix_address(root=self._root, dag_id=dag_id, run_id=run_id, **query)

    def image(self, image: GalleryImage) -> str:
        """Return the URL of an image's page."""
        return self._image(image)

    def thumbnail(self, image: GalleryImage) -> str:
        """Return the URL of an image's preview, or the API's URL if the image was not stored."""
        return self._file(image, "thumbnail") or ""

    def full(self, image: GalleryImage) -> str:
        """Return the URL of an image in full size, or the API's URL if the image was not stored."""
        return self._file(image, "full") or ""

    def airflow_dags(self) -> str:
        """Return the URL of the list of DAGs in Airflow."""
        return f"{self._base}/dags"

    def airflow_dag(self, dag_id: str) -> str:
        """Return the URL of a DAG in Airflow."""
        return f"{self._base}/dags/{quote(dag_id, safe='')}"

    def airflow_run(self, dag_id: str, run_id: str) -> str:
        """Return the URL of a run in Airflow."""
        return f"{self.airflow_dag(dag_id)}/runs/{quote(run_id, safe='')}"

    def airflow_task(self, ti: TaskInstance) -> str:
        """Return the URL of a task instance in Airflow, with its log."""
        mapped = f"/mapped/{ti.map_index}" if ti.map_index >= 0 else ""
        return f"{self.airflow_run(ti.dag_id, ti.run_id)}/tasks/{quote(ti.task_id, safe='')}{mapped}"

    def _image(self, image: GalleryImage, **query: Any) -> str:
        ti = image.ti
        return image_address(
            root=self._root,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=ti.map_index,
            prompt_index=image.prompt_index,
            image_index=image.image_index,
            **query,
        )

    def _file(self, image: GalleryImage, size: str) -> str | None:
        if not image.is_stored:
            return remote_link(image.url)
        # The digest prefix keeps browsers from showing a cached image that has since been replaced.
        return self._image(image, size=size, v=(image.sha256 or "")[:12])


def image_sources(images: Iterable[GalleryImage]) -> str:
    """Return the origins that a page loads images from, as a Content-Security-Policy source list."""
    origins = {"'self'"}
    for image in images:
        if not image.is_stored and (link := remote_link(image.url)):
            origins.add(origin_of(urlsplit(link)))
    return " ".join(sorted(origins))


def read_static(name: str) -> bytes | None:
    """Return a static file by name, or ``None``."""
    return _static_files().get(name)


@cache
def _static_files() -> dict[str, bytes]:
    folder = files("airflow_provider_imagen.plugins.gallery") / "static"
    return {name: (folder / name).read_bytes() for name in STATIC_TYPES}


@cache
def _asset_versions() -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest()[:12] for name, data in _static_files().items()}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("airflow_provider_imagen.plugins.gallery"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["usd"] = format_usd
    environment.filters["size"] = _format_size
    environment.filters["place"] = _without_connection
    environment.filters["moment"] = format_moment
    environment.filters["duration"] = format_duration
    return environment


def _format_size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"


def format_moment(moment: str) -> str:
    """Return a time in ISO 8601 in Airflow's default time zone; the script converts it to the visitor's."""
    try:
        return datetime.fromisoformat(moment).astimezone(_time_zone()).strftime("%Y-%m-%d %H:%M:%S %Z")
    except ValueError:
        return moment


def _time_zone() -> tzinfo | None:
    """Return Airflow's default time zone; ``None`` for the machine's."""
    name = conf.get("core", "default_timezone", fallback="utc")
    if name.lower() == "system":
        return None
    return UTC if name.lower() == "utc" else ZoneInfo(name)


def format_duration(seconds: float) -> str:
    """Return a duration to a tenth of a second, a second or a minute, depending on its length."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _without_connection(path: str) -> str:
    """Return an object store URL without its connection id (``s3://conn@bucket/key``)."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", path)
