"""Names and metadata on the gallery's pages, and the search for them."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance, TaskStatus
from airflow_provider_imagen.plugins.gallery.collection import Collection
from airflow_provider_imagen.plugins.gallery.run_results import TaskImages, TaskResult
from airflow_provider_imagen.plugins.gallery.task_results import read_images
from airflow_provider_imagen.plugins.gallery.view_state import ViewState
from airflow_provider_imagen.run_report import RunSummary
from airflow_provider_imagen.sandbox import Fault

from .test_gallery import links, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

ROWS = [
    {"prompt": "A teapot", "name": "T-100", "campaign": "Frühling", "alt_text": "An elephant as a teapot"},
    {"prompt": "A coffee mug", "name": "C-230", "campaign": "Frühling", "alt_text": None},
    {"prompt": "A poster", "name": "P-417", "campaign": "Autumn <sale>", "alt_text": "Rice terraces"},
]
COLUMNS = ["campaign", "alt_text"]


def cards(html: str) -> list[str]:
    """Return the prompts of the cards of a page, in order."""
    return [unescape(found) for found in re.findall(r'<span class="prompt">(.*?)</span>', html)]


def form_of(html: str) -> tuple[str, dict[str, str]]:
    """Return the address that the search form is sent to, and its fields, as a browser would send them."""
    (form,) = re.findall(r'<form class="search".*?</form>', html, re.DOTALL)
    fields = re.findall(r'<input [^>]*name="([^"]*)" value="([^"]*)"', form)
    return re.search(r'action="([^"]*)"', form)[1], {name: unescape(value) for name, value in fields}


@pytest.fixture
def search(visit: Any) -> Callable[..., str]:
    """Return a function that enters text into the search form of a page, and returns the page that it leads to."""
    ann = visit()

    def search(page: tuple[str, dict[str, Any]], text: str) -> str:
        action, fields = form_of(ann.get(page[0], params=page[1]).text)
        found = ann.get(action, params=fields | {"q": text})
        assert found.status_code == 200
        return found.text

    return search


def test_cards_and_the_page_of_an_image_show_name_and_metadata(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=ROWS, metadata_columns=COLUMNS, output_path=str(tmp_path))
    ann = visit()

    page = ann.get(gallery.task()[0], params=gallery.task()[1]).text
    first = ann.get(gallery.page(0)[0], params=gallery.page(0)[1]).text
    second = ann.get(gallery.page(1)[0], params=gallery.page(1)[1]).text

    assert re.findall(r'<span class="name">(.*?)</span>', page) == ["T-100", "C-230", "P-417"]
    shown = [text.strip() for text in re.findall(r'<span class="metadata">(.*?)</span>', page, re.DOTALL)]
    assert shown == [
        "campaign: Frühling · alt_text: An elephant as a teapot",
        "campaign: Frühling",
        "campaign: Autumn &lt;sale&gt; · alt_text: Rice terraces",
    ]
    assert "<dt>Name</dt><dd>T-100</dd>" in first
    assert '<dt>campaign</dt><dd class="text">Frühling</dd>' in first
    assert 'alt="An elephant as a teapot"' in first
    assert 'alt="A coffee mug"' in second
    assert "<dt>alt_text</dt>" not in second


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("teapot", ["A teapot"]),
        ("TEAPOT", ["A teapot"]),
        ("p-41", ["A poster"]),
        ("FRÜHLING", ["A teapot", "A coffee mug"]),
        ("frühling coffee", ["A coffee mug"]),
        ("  coffee   frühling ", ["A coffee mug"]),
        ("autumn teapot", []),
        ("coffee c", ["A coffee mug"]),
        ("<sale>", ["A poster"]),
        ("100\nFrühling", ["A teapot"]),
        ("", ["A teapot", "A coffee mug", "A poster"]),
        (" ", ["A teapot", "A coffee mug", "A poster"]),
    ],
)
def test_each_word_must_be_in_the_prompt_the_name_or_the_metadata(
    forged: Any, search: Any, text: str, prompts: list[str]
) -> None:
    rows = [{name: row[name] for name in ("prompt", "name")} for row in ROWS]
    metadata = [{name: row[name] for name in COLUMNS} for row in ROWS]
    gallery = forged(
        [record(prompt_index=n, metadata=metadata[n], **row) for n, row in enumerate(rows)]
        + [record(prompt_index=9, prompt="", name=None, metadata=None)]
    )
    everything = not text.strip()
    for page in (gallery.task(), ("/imagen/run", gallery.ids), ("/imagen/dag", {"dag_id": gallery.run.dag_id})):
        found = search(page, text)
        assert cards(found) == prompts + ([""] if everything else [])
        assert f"{len(prompts)} image{'s match' if len(prompts) != 1 else ' matches'}." in found or everything


def test_a_search_is_kept_from_page_to_page(forged: Any, visit: Any, search: Any) -> None:
    gallery = forged([record(prompt_index=n, prompt=f"{'fox & hen' if n % 2 else 'owl'} {n}") for n in range(150)])

    for page in (gallery.task(), ("/imagen/run", gallery.ids)):
        html = search(page, "fox &")
        (following,) = {link for link in links(html) if "page=2" in link}
        assert parse_qs(urlsplit(following).query)["q"] == ["fox &"]
        assert form_of(html)[1]["q"] == "fox &"
        last = visit().get(following).text
        assert cards(html) + cards(last) == [f"fox & hen {n}" for n in range(1, 150, 2)]
        assert "Page 2 of 2" in last
        (everything,) = re.findall(r'<a href="([^"]*)">Show all</a>', last)
        assert len(cards(visit().get(unescape(everything)).text)) == 60


def test_a_run_is_searched_in_all_of_its_tasks(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("several_tasks", schedule=None) as dag:

        @task
        def paint(number: int, ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record(prompt=f"{kind} {number}") for kind in ("fox", "owl")])
            ti.xcom_push(key="summary", value={"requested": 2, "made": 2, "usd_spent": 0.02})

        paint.expand(number=[1, 2])
        paint.override(task_id="single")(3)
    ids = {"dag_id": "several_tasks", "run_id": run_dag(dag).run_id}

    page = visit().get("/imagen/run", params=ids | {"q": "owl"}).text
    latest = visit().get("/imagen/dag", params={"dag_id": "several_tasks", "q": "owl"}).text

    assert cards(page) == cards(latest) == ["owl 1", "owl 2", "owl 3"]
    assert re.findall(r"<h2>(?:<a [^>]*>)?(.*?)(?:</a>)?</h2>", page) == ["paint", "single"]
    assert any("/imagen/run" in link and "q=owl" in link for link in links(latest))


def test_a_search_that_finds_too_much_for_the_page_of_a_dag_links_to_the_run(forged: Any, search: Any) -> None:
    gallery = forged([record(prompt_index=n, prompt=f"fox {n}") for n in range(20)])

    page = search(("/imagen/dag", {"dag_id": gallery.run.dag_id}), "fox 1")

    assert cards(page) == ["fox 1", *(f"fox {n}" for n in range(10, 17))]
    assert "All 11 matching images of this run" in page


def test_the_items_that_were_not_made_are_searched_too(
    painted: Any, search: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    for prompt in ("coffee", "poster"):
        sandbox.add_fault(Fault("none", prompt=prompt))
    gallery = painted(prompt=ROWS, metadata_columns=COLUMNS, output_path=str(tmp_path), on_filtered="accept")

    everything, found = search(gallery.task(), ""), search(gallery.task(), "autumn")

    assert cards(everything) == ["A teapot", "A coffee mug", "A poster"]
    assert cards(found) == ["A poster"]
    assert re.findall(r'<span class="name">(.*?)</span>', found) == ["P-417"]
    assert "campaign: Autumn &lt;sale&gt;" in found
    assert 'class="card"' not in found


def test_a_run_with_very_many_tasks_is_searched_as_far_as_the_time_allows() -> None:
    now = [0.0]

    class Slow(Collection):
        async def get_task(self, api: Any, ti: TaskInstance, summary: RunSummary | None = None) -> TaskImages:
            now[0] += 1.0
            return TaskImages(
                ti, summary, read_images(ti, [record(prompt="a fox"), record(image_index=1, prompt="an owl")])
            )

    tis = [TaskInstance("d", "r", "t", number) for number in range(12)]
    tasks = [TaskResult(TaskStatus(ti, "success"), RunSummary(requested=2, made=2)) for ti in tis]
    matches = asyncio.run(Slow(clock=lambda: now[0]).search(None, tasks, ViewState(q="fox"), seconds=3.0))

    assert (len(matches.tasks), matches.count, len(matches.unsearched)) == (8, 8, 4)
    assert matches.notes == ["4 more tasks could not be searched in time. Search on their own pages."]
    one = replace(matches, unsearched=matches.unsearched[:1])
    assert one.notes == ["1 more task could not be searched in time. Search on its own page."]


@pytest.mark.parametrize("text", ['"><script>alert(1)</script>', "{{ 7 * 7 }}", "' onfocus='x", "\0\u2028🦊"])
def test_a_search_is_shown_as_text(forged: Any, search: Any, text: str) -> None:
    gallery = forged([record(prompt=f"a {text} b")])

    page = search(gallery.task(), text)

    assert form_of(page)[1]["q"] == text.strip()
    assert "<script>alert" not in page
    assert "a 49 b" not in page
    assert len(cards(page)) == 1


def test_the_length_of_a_search_is_limited(forged: Any, visit: Any) -> None:
    gallery = forged([record(prompt="x" * 300)])
    path, query = gallery.task()

    assert visit().get(path, params=query | {"q": "x" * 200}).status_code == 200
    refused = visit().get(path, params=query | {"q": "x" * 201})
    assert refused.status_code == 422
    assert "xxx" not in refused.text


def test_a_page_without_images_has_no_search(forged: Any, visit: Any) -> None:
    gallery = forged([], made=0)

    for path, query in (gallery.task(), ("/imagen/task", {**gallery.ids, "task_id": "none"})):
        assert "<form" not in visit().get(path, params=query).text


@pytest.mark.parametrize(
    "metadata",
    [
        *("text", ["a"], {"a": 1}, {"a": {"b": "c"}}, {"": "x"}),
        *({"a" * 65: "x"}, {"a": "x" * 10_001}, {str(n): "x" for n in range(65)}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_metadata_that_no_task_writes_is_not_shown(forged: Any, visit: Any, metadata: Any) -> None:
    gallery = forged([record(metadata=metadata, name=7)])

    for page in (gallery.task(), gallery.page()):
        response = visit().get(page[0], params=page[1])
        assert response.status_code == 200
        assert "a prompt" in response.text
        assert 'class="metadata"' not in response.text


def test_broken_characters_in_metadata_become_question_marks() -> None:
    (image,) = read_images(TaskInstance("d", "r", "t"), [record(metadata={"a\ud83e": "b\ud83e"}, name="c\ud83e")])
    assert (image.metadata, image.name) == ({"a?": "b?"}, "c?")
