"""The gallery with many images: how long its pages and a zip take, and the memory that they cost the API server."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "The gallery"
REMARK = (
    "Images of 1.6 MB; the page of the run, from the request to its last byte: first without cached records, then five "
    "times more. Zip: all images of the run. Growth is by how much the resident memory of the API server exceeds that "
    "before, at most."
)

CACHE_SECONDS = 11.0
"""Time after which the API server has forgotten the records of images."""

VIEWS: dict[str, dict[str, Any]] = {
    "first page": {},
    "page 2": {"page": 2},
    "search": {"q": "picture 9"},
    "filter by model": {"model": "imagen-3.0-generate-002"},
    "filter by status": {"status": "missing"},
    "sort by cost": {"sort": "-cost"},
    "sort by time": {"sort": "-time"},
    "sort by name": {"sort": "name"},
    "sort by size, page 9": {"sort": "-size", "page": 9},
}


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per view of each run, and one per zip."""
    images = 8 if quick else 2_000
    _get(lab, "dag", dag_id="warm_up")
    rows = []
    lab.run("ours", prompts=images, concurrency=64)
    rows += _rows(lab, "ours", f"{images} in one task", images)
    instances = 4 if quick else 200
    lab.run(f"ours_mapped_{instances}")
    return [*rows, *_rows(lab, f"ours_mapped_{instances}", f"{instances} in mapped tasks of one folder", instances)]


def _rows(lab: Lab, dag_id: str, title: str, images: int) -> list[Row]:
    ids = {"dag_id": dag_id, "run_id": lab.airflow.runs(dag_id)[0]["dag_run_id"]}
    rows = []
    for name, view in VIEWS.items():
        time.sleep(CACHE_SECONDS if images > 8 else 0)
        rows.append(_time(lab, title, name, lambda view=view: _get(lab, "run", **ids, **view)))
    rows.append(_time(lab, title, "zip", lambda: _get(lab, "download", **ids, everything="true"), repeats=0))
    assert rows[-1]["MB"] > images * 1.5, rows[-1]
    return rows


def _time(lab: Lab, title: str, name: str, get: Any, *, repeats: int = 5) -> Row:
    with _memory_growth(lab) as growth:
        first, size = get()
        again = [get()[0] for _ in range(repeats)]
    return {
        "run": title,
        "request": name,
        "first s": first,
        "again s": median(again) if again else None,
        "MB": size / 1e6,
        "growth MiB": growth[0],
    }


def _get(lab: Lab, place: str, **query: Any) -> tuple[float, int]:
    """Return the seconds and the bytes of a response."""
    started, size = time.monotonic(), 0
    with lab.airflow.open(f"/imagen/{place}?{urlencode(query)}") as response:
        while piece := response.read(1 << 20):
            size += len(piece)
    return time.monotonic() - started, size


@contextmanager
def _memory_growth(lab: Lab) -> Iterator[list[float]]:
    """Yield a list, which then gets what the API server's resident memory grew at most, in MiB."""
    growth: list[float] = []
    is_over = threading.Event()
    before = lab.memory_mib("api-server")
    peaks = [before]

    def watch() -> None:
        while not is_over.wait(0.05):
            peaks.append(lab.memory_mib("api-server"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        is_over.set()
        thread.join()
        growth.append(max(peaks) - before)
