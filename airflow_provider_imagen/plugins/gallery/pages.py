"""The gallery's pages: template data, URLs and rendering."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_args
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from zoneinfo import ZoneInfo

from airflow.configuration import conf
from jinja2 import Environment, PackageLoader, StrictUndefined

from airflow_provider_imagen.links.gallery_urls import (
    all_dags_address,
    compare_address,
    dag_address,
    image_address,
    matrix_address,
    origin_of,
    remote_link,
    review_address,
    run_address,
    sheet_address,
    task_address,
)
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.plugins.gallery.image_ids import image_id
from airflow_provider_imagen.plugins.gallery.view_state import MAX_QUERY_CHARACTERS, PreviewSize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import tzinfo

    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
    from airflow_provider_imagen.plugins.gallery.run_results import RunResults
    from airflow_provider_imagen.plugins.gallery.task_results import Entry, GalleryImage
    from airflow_provider_imagen.plugins.gallery.view_state import Order, Status, ViewState

_CSS: Final = "text/css; charset=utf-8"
_JAVASCRIPT: Final = "text/javascript; charset=utf-8"
STATIC_TYPES: Final = {
    "gallery.css": _CSS,
    "look.css": _CSS,
    "review.css": _CSS,
    "gallery.js": _JAVASCRIPT,
    "live.js": _JAVASCRIPT,
    "zoom.js": _JAVASCRIPT,
    "lightbox.js": _JAVASCRIPT,
    "select.js": _JAVASCRIPT,
    "review.js": _JAVASCRIPT,
    "pictures.svg": "image/svg+xml",
}

_PAGES_AROUND: Final = 2  # in a pager, on each side of the page
_MAX_LABELS: Final = 2_000

_ORDERS: Final[dict[Order, str]] = {
    "prompt": "Prompt order",
    "-cost": "Highest cost first",
    "cost": "Lowest cost first",
    "-time": "Newest first",
    "time": "Oldest first",
    "name": "Name, A to Z",
    "-name": "Name, Z to A",
    "-size": "Largest file first",
    "size": "Smallest file first",
}
_STATUSES: Final[dict[Status, str]] = {
    "made": "Generated",
    "reused": "Reused from other runs",
    "filtered": "Filtered",
    "failed": "Failed",
    "in_doubt": "In doubt",
    "missing": "All that is missing",
}


@dataclass(frozen=True)
class Pager:
    """
    The position of a page among its siblings.

    :param number: page number, from 1
    :param count: number of pages, at least 1
    :param address: returns the URL of a page by its number
    """

    number: int
    count: int
    address: Callable[[int], str]

    @property
    def previous(self) -> str | None:
        """URL of the previous page."""
        return self.address(self.number - 1) if self.number > 1 else None

    @property
    def next(self) -> str | None:
        """URL of the next page."""
        return self.address(self.number + 1) if self.number < self.count else None

    @property
    def numbers(self) -> list[int | None]:
        """Numbers of the first, the last and the neighbouring pages; ``None`` for a gap."""
        near = range(self.number - _PAGES_AROUND, self.number + _PAGES_AROUND + 1)
        shown = sorted({1, self.count, *(number for number in near if 1 <= number <= self.count)})
        numbers: list[int | None] = []
        for previous, number in zip([0, *shown], shown, strict=False):
            if number - previous > 1:
                numbers.append(number - 1 if number - previous == 2 else None)
            numbers.append(number)
        return numbers


@dataclass(frozen=True)
class ViewForm:
    """
    The form of a page that searches, filters and sorts.

    :param address: URL of the page in its default view
    :param view: what the page shows
    :param found: number of images found
    :param models: models to choose from
    :param labels: tasks and task instances to choose from; at most 2,000 are offered
    """

    address: str
    view: ViewState
    found: int
    models: Iterable[str] = ()
    labels: Iterable[str] = ()
    max_characters: ClassVar[int] = MAX_QUERY_CHARACTERS
    orders: ClassVar[Mapping[Order, str]] = _ORDERS
    statuses: ClassVar[Mapping[Status, str]] = _STATUSES
    sizes: ClassVar[Sequence[str]] = get_args(PreviewSize)

    @property
    def everything(self) -> str:
        """URL of the page without search and filters."""
        parts = urlsplit(self.address)
        return f"{parts.path}?{urlencode([*self.fields, *self.view.without_filters.query.items()], quote_via=quote)}"

    @property
    def action(self) -> str:
        """URL that the form is sent to, without its query string, which browsers would drop."""
        return urlsplit(self.address).path

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names and values of the query string, for hidden fields."""
        return parse_qsl(urlsplit(self.address).query)

    @property
    def choices(self) -> list[tuple[str, str, list[str]]]:
        """Name, label and values of the lists to choose from; those that offer no choice are left out."""
        models = sorted({*self.models, *filter(None, [self.view.model])})
        labels = list(dict.fromkeys([*filter(None, [self.view.label]), *self.labels]))[:_MAX_LABELS]
        lists = [("model", "Model", models), ("label", "Task", labels)]
        return [choice for choice in lists if len(choice[2]) > 1 or getattr(self.view, choice[0])]


@dataclass(frozen=True)
class SelectionForm:
    """
    The form that takes selected images, or all that a page shows.

    :param address: URL of the page in its default view
    :param view: what the page shows
    :param count: number of images on this and the other pages of the view
    """

    address: str
    view: ViewState
    count: int

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names and values of hidden fields: the ids of what the page shows, and the search and filters."""
        kept = {"q", "model", "status", "label", "sort"} & self.view.query.keys()
        return [
            *parse_qsl(urlsplit(self.address).query),
            *((name, value) for name, value in self.view.query.items() if name in kept),
        ]


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
    :param contact_sheet: URL of the task's contact sheet; ``None`` if it has none
    :param models: models of the run's images, also of those not shown
    """

    title: str = ""
    href: str | None = None
    results: RunResults | None = None
    entries: list[Entry] = field(default_factory=list)
    count: int = 0
    notes: list[str] = field(default_factory=list)
    contact_sheet: str | None = None
    models: frozenset[str] = frozenset()

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

    def all_dags(self, **query: Any) -> str:
        """Return the URL of the page about all DAGs."""
        return all_dags_address(root=self._root, **query)

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

    def review(self, ti: TaskInstance, **query: Any) -> str:
        """Return the URL of the page where a person answers a waiting human-in-the-loop task."""
        return review_address(
            root=self._root, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index, **query
        )

    def contact_sheet(self, ti: TaskInstance) -> str:
        """Return the URL of a task instance's contact sheet."""
        return sheet_address(
            root=self._root, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index
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

    def airflow_action(self, ti: TaskInstance) -> str:
        """Return the URL of the form of a human-in-the-loop task in Airflow."""
        return f"{self.airflow_task(ti)}/required_actions"

    def answer_api(self, ti: TaskInstance) -> str:
        """Return the URL in Airflow's API of what a human-in-the-loop task asks, and of the answer."""
        ids = ("dags", ti.dag_id, "dagRuns", ti.run_id, "taskInstances", ti.task_id, str(ti.map_index), "hitlDetails")
        return f"{self._base}/api/v2/{'/'.join(quote(part, safe='') for part in ids)}"

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
    environment.filters["image_id"] = image_id
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
        return datetime.fromisoformat(moment).astimezone(time_zone()).strftime("%Y-%m-%d %H:%M:%S %Z")
    except (ValueError, OverflowError):  # the latter for a year that no time zone can represent
        return moment


def time_zone() -> tzinfo | None:
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
