"""Filters, orders, page numbers and preview sizes of the gallery's pages, all of which are in the URL."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from airflow_provider_imagen.plugins.gallery.airflow_api import DagRun, TaskInstance, TaskStatus, XCom
from airflow_provider_imagen.plugins.gallery.collection import Collection
from airflow_provider_imagen.plugins.gallery.pages import Pager
from airflow_provider_imagen.plugins.gallery.run_results import TaskResult
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
from airflow_provider_imagen.plugins.gallery.view_state import Order, PreviewSize, Status, ViewState, read_view_state
from airflow_provider_imagen.run_report import RunSummary
from airflow_provider_imagen.sandbox import Fault

from .test_gallery import links, record
from .test_gallery_values import prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox


@pytest.fixture
def look(visit: Any) -> Callable[..., str]:
    """Return a function that returns a page in a view."""
    ann = visit()

    def look(place: tuple[str, dict[str, Any]], **view: Any) -> str:
        found = ann.get(place[0], params=place[1] | view or None)
        assert found.status_code == 200
        return found.text

    return look


def pages_of(gallery: Any) -> list[tuple[str, dict[str, Any]]]:
    return [gallery.task(), ("/imagen/run", gallery.ids), ("/imagen/dag", {"dag_id": gallery.run.dag_id})]


def choices(html: str, name: str) -> list[str]:
    """Return what a list of the form offers; none if the form has no such list."""
    found = re.search(rf'<select name="{name}">(.*?)</select>', html, re.DOTALL)
    return [unescape(text) for text in re.findall(r"<option[^>]*>([^<]*)</option>", found[1])] if found else []


# --- the URL ----------------------------------------------------------------------------------------------------------

VIEWS = [
    ViewState(),
    ViewState(q="fox & hen", model="a/b", label="paint [3]", page=7),
    *(ViewState(status=status) for status in get_args(Status)),
    *(ViewState(sort=order) for order in get_args(Order)),
    *(ViewState(size=size) for size in get_args(PreviewSize)),
    ViewState(show="problems", q="ü\u2028'\"<>"),
]


@pytest.fixture(scope="module")
def reader() -> TestClient:
    app = FastAPI()

    @app.get("/")
    def read(view: ViewState = Depends(read_view_state)) -> dict[str, Any]:  # noqa: B008 - as FastAPI wants it
        return view.query

    read.__annotations__["view"] = ViewState
    return TestClient(app)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_is_read_from_the_url_that_it_is_written_to(reader: TestClient, view: ViewState) -> None:
    assert ViewState(**reader.get("/", params=view.query).json()) == view


def test_a_url_states_only_what_differs_from_the_default_view() -> None:
    assert ViewState().query == {}
    assert ViewState(q="fox", page=2).at(1).query == {"q": "fox"}
    assert ViewState(q="fox", size="large", sort="-cost", page=2).without_filters.query == {
        "sort": "-cost",
        "size": "large",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "broken"},
        {"sort": "prompt_index"},
        {"sort": "--cost"},
        {"size": "huge"},
        {"show": "nothing"},
        {"model": "x" * 251},
        {"label": "x" * 1001},
    ],
    ids=str,
)
def test_a_value_that_no_page_links_to_makes_an_invalid_url(forged: Any, visit: Any, wrong: dict[str, str]) -> None:
    gallery = forged([record()])
    for path, query in pages_of(gallery):
        assert visit().get(path, params=query | wrong).status_code == 422


def test_links_and_forms_of_a_page_keep_its_view(forged: Any, look: Any) -> None:
    models = ["one", "two"]
    gallery = forged([record(prompt_index=n, prompt=f"fox {n:03}", model=models[n % 2], usd=n) for n in range(300)])

    for page in pages_of(gallery)[:2]:
        html = look(page, q="fox", model="two", sort="-cost", size="small")
        states = [parse_qs(urlsplit(link).query) for link in links(html) if "page=" in link]
        assert {state["page"][0] for state in states} == {"2", "3"}
        for state in states:
            assert [state[name] for name in ("q", "model", "sort", "size")] == [["fox"], ["two"], ["-cost"], ["small"]]
        (selection,) = re.findall(r'<form id="selection".*?</form>', html, re.DOTALL)
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', selection))
        assert hidden.items() >= {"q": "fox", "model": "two", "sort": "-cost"}.items()
        (everything,) = re.findall(r'<a href="([^"]*)">Show all</a>', html)
        assert parse_qs(urlsplit(unescape(everything)).query).keys() >= {"sort", "size"}
        assert {"q", "model"}.isdisjoint(parse_qs(urlsplit(unescape(everything)).query))


# --- filters ----------------------------------------------------------------------------------------------------------


def test_images_are_filtered_by_model(forged: Any, look: Any) -> None:
    gallery = forged([record(prompt_index=n, prompt=f"p{n}", model=model) for n, model in enumerate("aba")])

    for page in pages_of(gallery):
        assert prompts(look(page, model="a")) == ["p0", "p2"]
        assert prompts(look(page, model="A")) == []
        assert choices(look(page), "model") == ["All", "a", "b"]
        assert choices(look(page, model="b"), "model") == ["All", "a", "b"]


def test_every_status_can_be_filtered(painted: Any, look: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("none", prompt="hen"))
    sandbox.add_fault(Fault("upstream_4xx", prompt="owl", times=None))
    first = painted(prompt="a fox", output_path=str(tmp_path), reuse="unchanged", seed=1)
    gallery = painted(
        prompt=[{"prompt": "a fox", "seed": 1}, "a hen", "an owl", "a hare"],
        output_path=str(tmp_path),
        on_filtered="accept",
        on_failure="accept",
        reuse="unchanged",
    )

    shown = {
        "made": ["a hare"],
        "reused": ["a fox"],
        "filtered": ["a hen"],
        "failed": ["an owl"],
        "in_doubt": [],
        "missing": ["a hen", "an owl"],
        "": ["a fox", "a hen", "an owl", "a hare"],
    }
    assert prompts(look(first.task())) == ["a fox"]
    for page in pages_of(gallery):
        assert {status: prompts(look(page, status=status)) for status in shown} == shown


def test_a_run_is_filtered_by_task_and_by_mapped_instance(run_dag: Callable[..., Any], look: Any) -> None:
    from airflow.sdk import DAG, task

    def publish(ti: Any, prompt: str) -> None:
        ti.xcom_push(key="images", value=[record(prompt=prompt)])
        ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.01})

    with DAG("filtered_by_label", schedule=None) as dag:

        @task(map_index_template="{{ task.op_kwargs['name'] }}")
        def paint(name: str, ti: Any = None) -> None:
            publish(ti, f"mapped {name}")

        @task
        def single(ti: Any = None) -> None:
            publish(ti, "single")

        paint.expand(name=["1", "10"])
        single()
    run = run_dag(dag)
    page = ("/imagen/run", {"dag_id": run.dag_id, "run_id": run.run_id})

    offered = choices(look(page), "label")
    assert offered == ["All", "paint", "paint 1", "paint 10", "single"]
    found = {label: prompts(look(page, label=label)) for label in [*offered[1:], "paint 2"]}
    assert found == {
        "paint": ["mapped 1", "mapped 10"],
        "paint 1": ["mapped 1"],
        "paint 10": ["mapped 10"],
        "single": ["single"],
        "paint 2": [],
    }
    assert choices(look(("/imagen/task", {**page[1], "task_id": "single"})), "label") == []


@pytest.mark.parametrize("view", [{"label": "other"}, {"model": "none"}, {"status": "in_doubt"}, {"q": "owl"}], ids=str)
def test_a_page_without_a_match_says_so_and_leads_to_everything(forged: Any, look: Any, view: dict[str, str]) -> None:
    gallery = forged([record(prompt="fox")])
    for page in pages_of(gallery):
        html = look(page, **view)
        assert prompts(html) == []
        assert "0 images match." in html
        assert 'id="selection"' not in html
        (everything,) = re.findall(r'<a href="([^"]*)">Show all</a>', html)
        assert prompts(look((unescape(everything), {}))) == ["fox"]


# --- orders -----------------------------------------------------------------------------------------------------------


def test_images_are_sorted_and_those_without_the_value_come_last(forged: Any, look: Any) -> None:
    values = {
        "a": {"usd": 0.2, "bytes": 30, "name": "Owl"},
        "b": {"usd": None, "bytes": None, "name": None},
        "c": {"usd": 0.1, "bytes": 10, "name": "fox"},
        "d": {"usd": 0.2, "bytes": 20, "name": "hen"},
    }
    gallery = forged([record(prompt_index=n, prompt=name, **values[name]) for n, name in enumerate(values)])

    orders = {
        "prompt": "abcd",
        "cost": "cadb",
        "-cost": "adcb",
        "name": "cdab",
        "-name": "adcb",
        "size": "cdab",
        "-size": "adcb",
        "time": "abcd",
        "-time": "abcd",
    }
    for page in pages_of(gallery):
        assert {order: "".join(prompts(look(page, sort=order))) for order in orders} == orders


@pytest.mark.parametrize("listed_in", ["XCom", "the manifest"])
def test_images_are_sorted_by_the_time_in_the_manifest(forged: Any, look: Any, tmp_path: Path, listed_in: str) -> None:
    manifest = tmp_path / "metadata.jsonl"
    times = ["2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00", "not a time", "2026-01-02T00:00:00+02:00"]
    records = [record(prompt_index=n, prompt=f"p{n}") for n in range(4)]
    gallery = forged(
        records if listed_in == "XCom" else {"manifest": str(manifest), "count": 4}, made=4, manifest=str(manifest)
    )
    ids = {**gallery.ids, "task_id": "paint", "map_index": -1}
    lines = [
        {"file_name": f"{n}.png", "created_at": time, **each, **ids}
        for n, (time, each) in enumerate(zip(times, records, strict=True))
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    for page in pages_of(gallery):
        assert prompts(look(page, sort="time")) == ["p1", "p3", "p0", "p2"]  # the last one has its task's time
        assert prompts(look(page, sort="-time")) == ["p2", "p0", "p3", "p1"]
    assert "2026-01-02 00:00:00 UTC" in look(gallery.page(0)) or listed_in == "XCom"


def test_a_sorted_run_mixes_its_tasks_and_names_them(run_dag: Callable[..., Any], look: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("mixed_tasks", schedule=None) as dag:
        for task_id, usd in (("one", [0.1, 0.3]), ("two", [0.2])):

            @task(task_id=task_id)
            def paint(usd: list[float], name: str, ti: Any = None) -> None:
                images = [record(image_index=n, prompt=f"{name} {each}", usd=each) for n, each in enumerate(usd)]
                ti.xcom_push(key="images", value=images)
                ti.xcom_push(key="summary", value={"requested": len(usd), "made": len(usd), "usd_spent": 0.0})

            paint(usd, task_id)
    run = run_dag(dag)

    html = look(("/imagen/run", {"dag_id": run.dag_id, "run_id": run.run_id}), sort="-cost")

    assert prompts(html) == ["one 0.3", "two 0.2", "one 0.1"]
    details = re.findall(r'<span class="details">\s*(\w+) · ', html)
    assert details == ["one", "two", "one"]


# --- pages and previews -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "count", "shown"),
    [
        (1, 1, [1]),
        (1, 3, [1, 2, 3]),
        (1, 34, [1, 2, 3, None, 34]),
        (4, 34, [1, 2, 3, 4, 5, 6, None, 34]),
        (5, 34, [1, 2, 3, 4, 5, 6, 7, None, 34]),
        (6, 34, [1, None, 4, 5, 6, 7, 8, None, 34]),
        (34, 34, [1, None, 32, 33, 34]),
    ],
)
def test_a_pager_shows_the_first_the_last_and_the_neighbouring_pages(number: int, count: int, shown: list[Any]) -> None:
    assert Pager(number, count, str).numbers == shown


def test_there_is_a_pager_above_and_below_the_images(forged: Any, look: Any) -> None:
    gallery = forged([record(prompt_index=n) for n in range(130)])

    for page in pages_of(gallery)[:2]:
        html = look(page, page=2)
        grid = html.index('<ul class="grid')
        places = [found.start() for found in re.finditer('<nav class="pager"', html)]
        assert [place < grid for place in places] == [True, False]
        assert len(set(re.findall(r'<nav class="pager" aria-label="([^"]*)"', html))) == 2
        assert html.count('aria-label="Page 2" aria-current="page"') == 2


@pytest.mark.parametrize("size", get_args(PreviewSize))
def test_previews_have_the_chosen_size(forged: Any, look: Any, size: str) -> None:
    gallery = forged([record()])
    for page in pages_of(gallery):
        assert f'<ul class="grid {size}">' in look(page, size=size)


# --- mapped instances that share a folder -----------------------------------------------------------------------------


def write_lines(folder: Path, *lines: dict[str, Any]) -> str:
    manifest = folder / "metadata.jsonl"
    manifest.write_text(
        "".join(json.dumps({"dag_id": "d", "run_id": "r", "task_id": "t"} | line) + "\n" for line in lines)
    )
    return str(manifest)


def instance(map_index: int, summary: RunSummary | None, **status: Any) -> TaskResult:
    ti = TaskInstance("d", "r", "t", map_index)
    return TaskResult(TaskStatus(ti, "success", label=f"[{map_index}]", **status), summary, is_counted=bool(summary))


class Recorded(Collection):
    """Records which task instances were read from Airflow's API."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    async def get_task(self, api: Any, ti: TaskInstance, summary: RunSummary | None = None) -> Any:
        from airflow_provider_imagen.plugins.gallery.run_results import TaskImages

        self.asked.append(ti.map_index)
        image = GalleryImage(ti=ti, prompt_index=0, image_index=0, prompt=f"from XCom {ti.map_index}")
        return TaskImages(ti, summary, [image])


def found_by(collection: Collection, tasks: list[TaskResult], **view: Any) -> tuple[list[str], int]:
    matches = asyncio.run(collection.search(None, tasks, ViewState(**view)))
    return [str(entry.prompt) for entry in matches.entries], len(matches.unsearched)


def test_the_manifest_of_a_shared_folder_saves_a_call_for_each_instance(tmp_path: Path) -> None:
    lines = [{"file_name": f"{n}.png", **record(prompt=f"fox {n}"), "map_index": n} for n in range(3)]
    manifest = write_lines(
        tmp_path, *lines, {"file_name": "x.png", **record(prompt="fox x"), "map_index": 0, "run_id": "o"}
    )
    summary = RunSummary(requested=1, made=1, manifest=manifest)
    collection = Recorded()

    tasks = [instance(n, summary) for n in range(3)]

    assert found_by(collection, tasks, q="fox") == (["fox 0", "fox 1", "fox 2"], 0)
    assert found_by(collection, tasks, label="t [1]", sort="-cost") == (["from XCom 1"], 0)  # one call is less
    assert collection.asked == [1]


def test_a_page_of_many_instances_that_share_a_folder_reads_its_manifest(tmp_path: Path) -> None:
    lines = [{"file_name": f"{n}.png", **record(prompt=f"fox {n}"), "map_index": n} for n in range(20)]
    summary = RunSummary(requested=1, made=1, manifest=write_lines(tmp_path, *lines))
    collection = Recorded()

    shown = asyncio.run(collection.read_slice(None, [instance(n, summary) for n in range(20)], first=5, most=10))

    assert [entry.prompt for task in shown for entry in task.entries] == [f"fox {n}" for n in range(5, 15)]
    assert collection.asked == []


@pytest.mark.parametrize(
    "change", [{"made": 2}, {"made": 0, "failed": 1}, {"in_progress": True}, {"manifest": "/elsewhere/metadata.jsonl"}]
)
def test_an_instance_that_the_manifest_does_not_describe_is_read_by_itself(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    lines = [{"file_name": f"{n}.png", **record(prompt=f"fox {n}"), "map_index": n} for n in range(3)]
    summary = RunSummary(requested=1, made=1, manifest=write_lines(tmp_path, *lines))
    other = RunSummary(**{"requested": 1, "made": 1, "manifest": summary.manifest, **change})
    collection = Recorded()

    tasks = [instance(0, summary), instance(1, other), instance(2, summary)]

    assert found_by(collection, tasks, sort="name") == (["fox 0", "from XCom 1", "fox 2"], 0)
    assert collection.asked == [1]


def test_instances_whose_summary_was_not_read_in_time_are_found_in_the_manifest(tmp_path: Path) -> None:
    lines = [{"file_name": f"{n}.png", **record(prompt=f"fox {n}"), "map_index": n} for n in range(3)]
    summary = RunSummary(requested=1, made=1, manifest=write_lines(tmp_path, *lines))

    tasks = [instance(0, summary), instance(1, summary), instance(2, None), instance(3, None)]

    assert found_by(Recorded(), tasks, q="fox") == (["fox 0", "fox 1", "fox 2"], 1)


@pytest.mark.parametrize(
    "line",
    [
        {"file_name": "../secret.png"},
        {"file_name": "/etc/passwd"},
        {"file_name": 7},
        {"task_id": 7},
        {"map_index": "1"},
        {"map_index": None},
    ],
    ids=str,
)
def test_a_line_that_no_task_writes_is_skipped(tmp_path: Path, line: dict[str, Any]) -> None:
    good = [{"file_name": f"{n}.png", **record(prompt=f"fox {n}"), "map_index": n} for n in range(2)]
    bad = {"file_name": "bad.png", **record(prompt="bad"), "map_index": 1, **line}
    summary = RunSummary(requested=1, made=1, manifest=write_lines(tmp_path, bad, *good))

    assert found_by(Recorded(), [instance(n, summary) for n in range(2)], sort="name") == (["fox 0", "fox 1"], 0)


class FewCalls:
    """Airflow's API with one run of one task, counting how often its task instances are listed."""

    def __init__(self) -> None:
        self.listed = 0

    async def list_operators(self, dag_id: str) -> frozenset[str]:
        return frozenset()

    async def list_task_instances(self, **_: Any) -> list[TaskStatus]:
        self.listed += 1
        return [TaskStatus(TaskInstance("d", "r", "t"), "success")]

    async def list_xcoms(self, **_: Any) -> dict[TaskInstance, str]:
        return {TaskInstance("d", "r", "t"): "1"}

    async def get_xcom(self, ti: TaskInstance, key: str) -> XCom:
        return XCom({"requested": 1, "made": 1, "usd_spent": 0.1}, "1")


def test_the_views_of_a_run_that_has_ended_share_the_list_of_its_task_instances() -> None:
    now = [0.0]
    api = FewCalls()
    ended = DagRun("d", "r", "success", None, None, 1.0)

    async def look() -> None:
        collection = Collection(clock=lambda: now[0])
        for _ in range(3):
            await collection.read_run(api, ended)
        assert api.listed == 1
        for run in (replace(ended, state="running"), replace(ended, state="running"), replace(ended, seconds=2.0)):
            await collection.read_run(api, run)
        assert api.listed == 4
        now[0] = 11.0
        await collection.read_run(api, ended)
        assert api.listed == 5

    asyncio.run(look())
