"""The content of the gallery's pages: numbers, order, navigation, and the headers that control browser caches."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import re
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.plugins.gallery.expiring_cache import ExpiringCache
from airflow_provider_imagen.plugins.gallery.files import FileUnavailableError, media_type, open_image_file
from airflow_provider_imagen.plugins.gallery.pages import Pages, image_sources, remote_link
from airflow_provider_imagen.plugins.gallery.snippet import snippet
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, read_images, read_problems, read_summary

from .test_gallery import links, picture_file, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

TI = TaskInstance("d", "r", "t")


def prompts(html: str) -> list[str]:
    """Return the prompts of the cards of a page, in order."""
    return [unescape(found) for found in re.findall(r'<span class="prompt">(.*?)</span>', html)]


def reasons(html: str) -> list[str]:
    """Return why images are missing, in the order of the page."""
    return [unescape(found) for found in re.findall(r'<p class="why"[^>]*>(.*?)</p>', html, re.DOTALL)]


def totals(html: str) -> dict[str, str]:
    """Return the counts and amounts of a page, by their names."""
    shown = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd></div>", html))
    return {name: value for name, value in shown.items() if name not in ("State", "Duration")}


def numbered(count: int, **values: Any) -> list[dict[str, Any]]:
    return [record(prompt_index=number, prompt=f"prompt {number:03}", **values) for number in range(count)]


def pager(html: str) -> tuple[str | None, str | None, str | None]:
    """Return the previous page number, the text of the pager, and the next page number."""
    found = re.search(r'<nav class="pager" aria-label="Pages">(.*?)</nav>', html, re.DOTALL)
    if found is None:
        return None, None, None
    numbers = {
        rel: parse_qs(urlsplit(unescape(href)).query).get("page", ["1"])[0]
        for rel, href in re.findall(r'rel="(prev|next)" href="([^"]*)"', found[1])
    }
    return numbers.get("prev"), re.search(r"<span>(.*?)</span>", found[1])[1], numbers.get("next")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_every_number_of_a_summary_is_shown_under_its_name(forged: Any, visit: Any) -> None:
    gallery = forged(
        [record()],
        requested=20,
        made=7,
        filtered=1,
        failed=2,
        not_sent=3,
        adopted=4,
        usd_spent=1234.5,
        usd_lost=0.75,
        usd_in_doubt=0.25,
        usd_is_estimate=True,
    )

    page = visit().get(gallery.task()[0], params=gallery.task()[1]).text

    assert totals(page) == {
        "Generated": "7 of 20",
        "Filtered": "1",
        "Failed": "2",
        "Not sent": "3",
        "Reused from previous attempts": "4",
        "Spent": "about $1,234.50",
        "Of which lost": "$0.75",
        "In doubt (maximum)": "$0.25",
    }


def test_zero_values_are_not_shown(forged: Any, visit: Any) -> None:
    gallery = forged([record()], usd_spent=1.0)

    page = visit().get(gallery.task()[0], params=gallery.task()[1]).text

    assert totals(page) == {"Generated": "1 of 1", "Spent": "$1.00"}
    assert "See only what is missing" not in page


def test_a_run_adds_up_every_number_of_its_tasks(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    names = (
        *("requested", "made", "filtered", "failed", "not_sent", "adopted", "usd_spent", "usd_lost", "usd_in_doubt"),
        *("reused", "beyond_limit", "usd_saved"),
    )
    with DAG("adds_up", schedule=None) as dag:

        @task
        def paint(factor: int, ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record(prompt=f"of {factor}", image_index=n) for n in range(2 * factor)])
            counts = {name: factor * number for number, name in enumerate(names, 1)}
            ti.xcom_push(key="summary", value={**counts, "usd_is_estimate": factor == 1})

        paint.expand(factor=[1, 10, 100])
    ids = {"dag_id": "adds_up", "run_id": run_dag(dag).run_id}
    ann = visit()

    page = ann.get("/imagen/run", params=ids).text

    assert totals(page) == {
        "Generated": "222 of 111",
        "Filtered": "333",
        "Failed": "444",
        "Not sent": "555",
        "Reused from previous attempts": "666",
        "Spent": "about $777.00",
        "Of which lost": "$888.00",
        "In doubt (maximum)": "$999.00",
        "Reused from other runs": "1110",
        "Left out by limit": "1221",
        "Saved by reuse": "$1,332.00",
    }
    assert prompts(page) == ["of 1"] * 2 + ["of 10"] * 20  # then come the places of the images that are missing
    assert pager(page) == (None, "Page 1 of 17", "2")
    second = ann.get("/imagen/run", params={**ids, "page": 2}).text
    assert prompts(second) == ["of 100"] * 21
    assert pager(second) == ("1", "Page 2 of 17", "3")
    problems = ann.get("/imagen/run", params={**ids, "show": "problems"}).text
    assert re.findall(r"<h2><a [^>]*>(.*?)</a></h2>", problems) == [f"paint [{number}]" for number in range(3)]
    assert "All requested images" not in problems
    assert re.findall(r"(\d+) were not requested, because the task ended first", problems) == ["5", "50", "500"]


@pytest.mark.parametrize(
    ("usd", "shown"),
    [(0, "$0.00"), (0.04, "$0.04"), (0.99994, "$0.9999"), (1, "$1.00"), (1234.5, "$1,234.50"), (None, "unknown")],
)
def test_the_cost_of_an_image_has_four_decimals_below_a_dollar(forged: Any, visit: Any, usd: Any, shown: str) -> None:
    gallery = forged([record(usd=usd)])
    ann = visit()

    assert f"<dt>Cost</dt><dd>{shown}</dd>" in ann.get(gallery.page()[0], params=gallery.page()[1]).text
    card = ann.get(gallery.task()[0], params=gallery.task()[1]).text
    assert f" · {'cost unknown' if usd is None else shown}</span>" in card


@pytest.mark.parametrize(
    ("size", "shown"),
    [(1, "0.1 kB"), (1234, "1.2 kB"), (999_000, "999.0 kB"), (1_000_000, "1.0 MB"), (12_340_000, "12.3 MB")],
)
def test_the_size_of_an_image_is_readable(forged: Any, visit: Any, size: int, shown: str) -> None:
    gallery = forged([record(width=40, height=30, bytes=size, mime_type="image/png")])

    text = visit().get(gallery.page()[0], params=gallery.page()[1]).text

    assert f"<dd>40×30, {shown}, image/png</dd>" in text


def test_each_number_of_a_summary_is_validated_separately() -> None:
    value = {
        **{name: number for number, name in enumerate(("requested", "made", "filtered", "failed", "not_sent"), 1)},
        "adopted": -1,
        "usd_spent": 1.5,
        "usd_lost": True,
        "usd_in_doubt": "2",
        "usd_is_estimate": 1,
        "manifest": "/m",
    }

    counts = read_summary(value)

    assert counts is not None
    assert (counts.requested, counts.made, counts.filtered, counts.failed, counts.not_sent) == (1, 2, 3, 4, 5)
    assert (counts.adopted, counts.usd_spent, counts.usd_lost, counts.usd_in_doubt) == (0, 1.5, 0.0, 0.0)
    assert (counts.usd_is_estimate, counts.problems, counts.manifest) == (False, 12, "/m")
    for missing in ("requested", "made", "usd_spent"):
        assert read_summary({name: part for name, part in value.items() if name != missing}) is None


def test_problems_are_read_with_all_their_fields() -> None:
    line = {
        "prompt_index": 3,
        "prompt": "a fox",
        "name": "fox",
        "model": "m",
        "requested": 4,
        "made": 1,
        "outcome": "filtered",
        "error": "FilteredError",
        "message": "withheld",
        "usd": 0.5,
        "inference_id": "inf",
    }

    odd, problem, unknown = read_problems(TI, [{}, line, {**line, "outcome": "else"}])

    assert (problem.prompt_index, problem.prompt, problem.name, problem.model) == (3, "a fox", "fox", "m")
    assert (problem.requested, problem.made, problem.outcome, problem.usd) == (4, 1, "filtered", 0.5)
    assert (problem.error, problem.message, problem.inference_id) == ("FilteredError", "withheld", "inf")
    assert (odd.requested, odd.outcome, odd.usd, unknown.outcome) == (None, "failed", None, "failed")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_malformed_record_hides_no_other_wherever_it_is(place: int) -> None:
    records: list[Any] = numbered(2)
    records.insert(place, {"prompt_index": "x"})

    assert [image.prompt for image in read_images(TI, records)] == ["prompt 000", "prompt 001"]


def test_a_key_that_cannot_be_encoded_does_not_hide_the_rest_of_its_record() -> None:
    (image,) = read_images(TI, [record(prompt="a fox", **{"\ud800": 1})])
    (problem,) = read_problems(TI, [{"message": "withheld", "\ud800": 1}])
    summary = read_summary({"requested": 1, "made": 1, "usd_spent": 0.5, "\ud800": 1})

    assert (image.prompt, problem.message) == ("a fox", "withheld")
    assert summary is not None
    assert summary.usd_spent == 0.5


def test_a_cached_summary_is_small_however_large_its_xcom_is() -> None:
    long = "x" * 1_000_000
    value = {"requested": 1, "made": 1, "usd_spent": 0.5, "in_doubt": [long], "output_path": long, "other": long}

    found = read_summary({**value, "contact_sheet": long})

    assert found is not None
    assert len(repr(found)) < 1000


def test_images_are_ordered_by_prompt_and_number_whatever_the_record_order(forged: Any, visit: Any) -> None:
    places = [(1, 1), (0, 1), (10, 0), (1, 0), (2, 0), (0, 0)]
    gallery = forged([record(prompt_index=p, image_index=i, prompt=f"{p}-{i}") for p, i in places])

    page = visit().get(gallery.task()[0], params=gallery.task()[1]).text

    assert prompts(page) == ["0-0", "0-1", "1-0", "1-1", "2-0", "10-0"]


def test_a_card_shows_the_details_of_its_image(forged: Any, visit: Any) -> None:
    gallery = forged([record(width=40, height=30, seed=0, usd=0.04), record(image_index=1, model=None, width=40)])

    page = visit().get(gallery.task()[0], params=gallery.task()[1]).text

    fields = [" ".join(found.split()) for found in re.findall(r'<span class="details">(.*?)</span>', page, re.DOTALL)]
    assert fields == ["a-model · 40×30 · seed 0 · $0.04", "unknown model · $0.01"]


# --- navigation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [60, 61])
def test_a_page_holds_sixty_images(forged: Any, visit: Any, count: int) -> None:
    gallery = forged(numbered(count))
    ann = visit()
    path, query = gallery.task()

    first, second = (ann.get(path, params={**query, "page": number}).text for number in (1, 2))

    names = [f"prompt {number:03}" for number in range(count)]
    assert prompts(first) == names[:60]
    assert pager(first) == ((None, None, None) if count == 60 else (None, "Page 1 of 2", "2"))
    assert prompts(second) == (names if count == 60 else names[60:])  # there is no page 2, so the last one is shown
    assert ann.get("/imagen/run", params={**gallery.ids, "page": 2}).text.count('class="card"') == (60, 1)[count - 60]


def test_pages_link_to_the_previous_and_next_page(forged: Any, visit: Any) -> None:
    gallery = forged(numbered(130))
    ann = visit()
    path, query = gallery.task()

    pages = [ann.get(path, params={**query, "page": number}).text for number in (1, 2, 3, 4, 100_000)]

    assert [pager(page) for page in pages] == [
        (None, "Page 1 of 3", "2"),
        ("1", "Page 2 of 3", "3"),
        *[("2", "Page 3 of 3", None)] * 3,
    ]
    onwards = re.search(r'rel="next" href="([^"]*)"', pages[0])[1]
    assert prompts(ann.get(unescape(onwards)).text) == [f"prompt {number:03}" for number in range(60, 120)]
    for number in (0, 100_001, "x"):
        assert ann.get(path, params={**query, "page": number}).status_code == 422


def test_an_image_links_to_the_previous_and_next_image(forged: Any, visit: Any) -> None:
    gallery = forged([record(prompt_index=p, image_index=i) for p, i in ((0, 0), (0, 1), (5, 0))])
    ann = visit()
    found = []
    for prompt, image in ((0, 0), (0, 1), (5, 0)):
        text = ann.get(gallery.page(prompt, image)[0], params=gallery.page(prompt, image)[1]).text
        near = {
            rel: parse_qs(urlsplit(unescape(href)).query)
            for rel, href in re.findall(r'rel="(prev|next)" href="([^"]*)"', text)
        }
        places = {rel: (query["prompt_index"][0], query["image_index"][0]) for rel, query in near.items()}
        found.append((re.search(r"<h1>(.*?)</h1>", text)[1], places))

    assert found == [
        ("Image 1 of 3", {"next": ("0", "1")}),
        ("Image 2 of 3", {"prev": ("0", "0"), "next": ("5", "0")}),
        ("Image 3 of 3", {"prev": ("0", "1")}),
    ]
    for prompt, image in ((0, 2), (1, 0), (5, 1)):
        assert ann.get(gallery.page(prompt, image)[0], params=gallery.page(prompt, image)[1]).status_code == 404


def test_breadcrumbs_link_to_the_parent_pages_and_to_airflow(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    ann = visit()
    dag_id, run = gallery.run.dag_id, gallery.run.run_id.replace(":", "%3A").replace("+", "%2B")
    pages = [gallery.task(), ("/imagen/run", gallery.ids), ("/imagen/dag", {"dag_id": dag_id}), gallery.page()]

    found = [ann.get(path, params=query).text for path, query in pages]

    crumbs = [links(re.search(r"<ol>(.*?)</ol>", text, re.DOTALL)[1]) for text in found]
    up = [
        "/imagen/dags",
        f"/imagen/dag?dag_id={dag_id}",
        f"/imagen/run?dag_id={dag_id}&run_id={run}",
        f"/imagen/task?dag_id={dag_id}&run_id={run}&task_id=paint&map_index=-1",
    ]
    assert crumbs == [up, up[:3], up[:2], up]
    airflow = [re.search(r'class="airflow" target="_top" href="([^"]*)"', text)[1] for text in found]
    assert airflow == [
        f"/dags/{dag_id}/runs/{run}/tasks/paint",
        f"/dags/{dag_id}/runs/{run}",
        f"/dags/{dag_id}",
        f"/dags/{dag_id}/runs/{run}/tasks/paint",
    ]
    current = [text.count('aria-current="page"') for text in found]
    assert current == [1, 1, 1, 0]
    assert Pages("/base/imagen").airflow_task(TaskInstance("d", "r", "t", 0)) == "/base/dags/d/runs/r/tasks/t/mapped/0"


def test_what_is_missing_is_shown_in_its_place_and_can_be_listed_alone(forged: Any, visit: Any, tmp_path: Path) -> None:
    from airflow_provider_imagen.run_report import FailureLine
    from airflow_provider_imagen.storage.manifest import write_manifest
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

    manifest = str(tmp_path / "metadata.jsonl")
    gallery = forged(numbered(61), requested=74, manifest=manifest, failed=13)
    ti_key = TaskInstanceKey(run_id=gallery.run.run_id, dag_id=gallery.run.dag_id, task_id="paint")
    lines = [
        FailureLine(prompt_index=2 * n, prompt=f"bad {n}", message=f"why {n}", requested=2, made=1) for n in range(13)
    ]
    write_manifest(tmp_path, ti_key=ti_key, lines=[], failures=lines)
    ann = visit()
    task, run = gallery.task(), ("/imagen/run", gallery.ids)

    for path, query in (task, run):
        first, second = (ann.get(path, params={**query, "page": number}).text for number in (1, 2))
        assert prompts(first)[:5] == ["prompt 000", "bad 0", "prompt 001", "prompt 002", "bad 1"]
        assert prompts(second) == [f"prompt {number:03}" for number in range(47, 61)]
        assert reasons(first) == [f"why {number}" for number in range(13)]
        assert "1 of 2 generated" in first
        assert "See only what is missing" in first
        problems = ann.get(path, params={**query, "show": "problems"}).text
        assert reasons(problems) == reasons(first)
        assert 'class="card"' not in problems
        assert "were not requested" not in problems


def test_a_problem_with_an_unknown_prompt_shows_none(forged: Any, visit: Any, tmp_path: Path) -> None:
    """Such as a request in doubt whose intent was lost."""
    from airflow_provider_imagen.run_report import FailureLine
    from airflow_provider_imagen.storage.manifest import write_manifest
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

    gallery = forged([record()], manifest=str(tmp_path / "metadata.jsonl"), failed=1)
    ti_key = TaskInstanceKey(run_id=gallery.run.run_id, dag_id=gallery.run.dag_id, task_id="paint")
    write_manifest(tmp_path, ti_key=ti_key, lines=[], failures=[FailureLine(outcome="in_doubt", message="why")])

    page = visit().get(gallery.task()[0], params=gallery.task()[1]).text

    assert reasons(page) == ["why"]
    assert prompts(page) == ["a prompt"]


@pytest.mark.parametrize("manifest", [None, "", 3])
def test_a_task_that_stored_nothing_refers_to_its_log(forged: Any, visit: Any, manifest: Any) -> None:
    gallery = forged([record()], manifest=manifest, failed=1)

    page = visit().get(gallery.task()[0], params=gallery.task()[1]).text

    assert "The task stored nothing, so the reasons are in its log only." in page


def test_a_run_without_problems_says_so(forged: Any, visit: Any) -> None:
    gallery = forged([record()])

    page = visit().get("/imagen/run", params={**gallery.ids, "show": "problems"}).text

    assert "All requested images were generated." in page
    assert "All requested images" not in visit().get("/imagen/run", params=gallery.ids).text


def test_a_dag_shows_the_newest_eight_runs_and_eight_images_of_each(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("many_runs", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="images", value=numbered(9))
            ti.xcom_push(key="summary", value={"requested": 9, "made": 9, "usd_spent": 0.01})

        paint()
    runs = [run_dag(dag).run_id for _ in range(9)]

    page = visit().get("/imagen/dag", params={"dag_id": "many_runs"}).text

    assert re.findall(r"<h2><a [^>]*>(.*?)</a>", page) == runs[:0:-1]
    assert prompts(page) == [f"prompt {number:03}" for number in range(8)] * 8
    assert page.count("All 9 images of this run") == 8


def test_a_run_with_a_summary_of_another_tool_is_not_listed(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("other_tool", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="summary", value={"rows": 1})

        paint()
    run_id = run_dag(dag).run_id

    page = visit().get("/imagen/dag", params={"dag_id": "other_tool"}).text

    assert "No run of this DAG has generated images yet." in page
    assert run_id not in page


@pytest.mark.parametrize("state", ["queued", "running", "success"])
def test_a_run_without_images_says_whether_some_may_follow(run_dag: Callable[..., Any], visit: Any, state: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.sdk import DAG, task
    from airflow.utils.session import create_session

    with DAG(f"run_{state}", schedule=None) as dag:

        @task
        def nothing() -> None: ...

        nothing()
    run = run_dag(dag)
    with create_session() as session:
        session.query(DagRun).filter_by(dag_id=run.dag_id).update({"state": state})

    page = visit().get("/imagen/run", params={"dag_id": run.dag_id, "run_id": run.run_id}).text

    assert ("as soon as they are stored" in page) == (state != "success")


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("running", "has not finished yet"),
        ("deferred", "has not finished yet"),
        (None, "has not finished yet"),
        ("failed", "Its log has the reason."),
        ("skipped", "This task was skipped, so it has no images."),
        ("success", "Airflow has since deleted their records"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_task_without_images_says_why(
    run_dag: Callable[..., Any], visit: Any, state: str | None, sentence: str, mapped: bool
) -> None:
    from airflow.models.taskinstance import TaskInstance as Row
    from airflow.sdk import DAG, task
    from airflow.utils.session import create_session

    with DAG(f"task_{state}_{mapped}", schedule=None) as dag:

        @task
        def nothing(number: int) -> None: ...

        nothing.expand(number=[1]) if mapped else nothing(1)
    run = run_dag(dag)
    with create_session() as session:
        session.query(Row).filter_by(dag_id=run.dag_id).update({"state": state})
    query = {"dag_id": run.dag_id, "run_id": run.run_id, "task_id": "nothing", "map_index": 0 if mapped else -1}

    assert sentence in unescape(visit().get("/imagen/task", params=query).text)


def test_a_task_that_generated_nothing_says_so(forged: Any, visit: Any) -> None:
    gallery = forged([], requested=1, made=0)

    assert "This task generated no images." in visit().get(gallery.task()[0], params=gallery.task()[1]).text


# --- files and browser caches -----------------------------------------------------------------------------------------


def test_pages_are_never_cached_and_images_are_revalidated_by_digest(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt="fox", output_path=str(tmp_path))
    (image,) = gallery.xcom("images")
    ann = visit()

    for path, query in (gallery.task(), gallery.page(), ("/imagen/run", gallery.ids), ("/imagen/nowhere", {})):
        assert ann.get(path, params=query).headers["cache-control"] == "private, no-store"
    for size in ("full", "thumbnail"):
        path, query = gallery.file(size=size)
        response = ann.get(path, params=query)
        again = ann.get(path, params=query, headers={"If-None-Match": response.headers["etag"]})
        other = ann.get(path, params=query, headers={"If-None-Match": f'"{"0" * 64}-{size}"'})
        assert [each.status_code for each in (response, again, other)] == [200, 304, 200]
        for each in (response, again):
            assert each.headers["etag"] == f'"{image["sha256"]}-{size}"'
            assert each.headers["cache-control"] == "private, no-cache"
            assert each.headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert each.headers["cross-origin-resource-policy"] == "same-origin"
    assert ann.get(*gallery.file()[:1], params=gallery.file()[1]).headers["content-length"] == str(image["bytes"])


def test_style_and_script_are_cached_for_a_day_and_versioned_by_content(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    ann = visit()
    page = ann.get(gallery.task()[0], params=gallery.task()[1]).text
    static = [link for link in links(page) + links(page, "src") if "/static/" in link]

    assert len(static) > 2
    for link in static:
        response = ann.get(link)
        kind = {"css": "text/css", "js": "text/javascript"}[urlsplit(link).path.rpartition(".")[2]]
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        assert response.headers["cache-control"] == "public, max-age=86400"
        assert urlsplit(link).query == f"v={hashlib.sha256(response.content).hexdigest()[:12]}"
    assert ann.get("/imagen/static/app.py").status_code == 404


@pytest.mark.parametrize(
    ("image_format", "kind", "disposition"),
    [("JPEG", "image/jpeg", "inline; .jpg"), ("PNG", "image/png", "inline; .png"), ("TIFF", "image/tiff", "att .tiff")],
)
def test_a_file_is_named_after_its_task_and_numbers(
    forged: Any, visit: Any, tmp_path: Path, image_format: str, kind: str, disposition: str
) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a", image_format)
    data = (tmp_path / "a").read_bytes()
    fields = {"path": str(tmp_path / "a"), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    gallery = forged([record(prompt_index=12, image_index=3, **fields)])

    response = visit().get(*gallery.file(12, 3)[:1], params=gallery.file(12, 3)[1])

    how = "inline" if disposition.startswith("inline") else "attachment"
    extension = disposition.rpartition(".")[2]
    assert response.headers["content-type"] == kind
    assert response.headers["content-disposition"] == f"{how}; filename*=UTF-8''paint-12-3.{extension}"
    preview = visit().get(*gallery.file(12, 3)[:1], params=gallery.file(12, 3, size="thumbnail")[1])
    assert preview.headers["content-disposition"] == "inline; filename*=UTF-8''paint-12-3.webp"


def test_cards_load_previews_and_image_pages_load_the_file(forged: Any, visit: Any, tmp_path: Path) -> None:
    fields = picture_file(tmp_path / "a.png")
    gallery = forged([record(**fields)])
    ann = visit()

    (preview,) = [
        link
        for link in links(ann.get(gallery.task()[0], params=gallery.task()[1]).text, "src")
        if "/imagen/file" in link
    ]
    (full,) = {
        link
        for link in links(ann.get(gallery.page()[0], params=gallery.page()[1]).text, "src")
        if "/imagen/file" in link
    }

    for link, size in ((preview, "thumbnail"), (full, "full")):
        query = parse_qs(urlsplit(link).query)
        assert (query["size"], query["v"]) == ([size], [fields["sha256"][:12]])
        assert (query["prompt_index"], query["image_index"], query["map_index"]) == (["0"], ["0"], ["-1"])


@pytest.mark.parametrize("missing", ["path", "sha256", "bytes"])
def test_a_record_without_path_digest_or_size_opens_no_file(tmp_path: Path, missing: str) -> None:
    fields = {name: value for name, value in picture_file(tmp_path / "a.png").items() if name != missing}

    with open_image_file(
        GalleryImage(ti=TI, prompt_index=0, image_index=0, **picture_file(tmp_path / "a.png"))
    ) as file:
        assert file.read()
    assert not GalleryImage(ti=TI, prompt_index=0, image_index=0, **fields).is_stored
    with pytest.raises(FileUnavailableError):
        open_image_file(GalleryImage(ti=TI, prompt_index=0, image_index=0, **fields))


def test_an_image_above_the_size_limit_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_imagen.plugins.gallery import files

    fields = picture_file(tmp_path / "a.png")
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", fields["bytes"])
    with open_image_file(GalleryImage(ti=TI, prompt_index=0, image_index=0, **fields)) as file:
        assert file.read()
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", fields["bytes"] - 1)
    with pytest.raises(FileUnavailableError):
        open_image_file(GalleryImage(ti=TI, prompt_index=0, image_index=0, **fields))


@pytest.mark.parametrize(("width", "is_png"), [(0, False), (1, True), (2**31, False)])
def test_a_png_is_recognized_by_its_header(width: int, is_png: bool) -> None:
    target = BytesIO()
    Image.new("1", (1, 1)).save(target, "PNG")
    data = target.getvalue()

    assert media_type(BytesIO(data[:16] + width.to_bytes(4, "big") + data[20:])) == ("image/png" if is_png else None)
    assert media_type(BytesIO(data[:12] + b"JUNK" + data[16:])) is None


# --- errors -----------------------------------------------------------------------------------------------------------


def test_every_error_has_its_own_message(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    ann, bob, nobody = visit("ann"), visit("bob", only=set()), visit(None)
    path, query = gallery.task()

    def message(response: Any) -> tuple[int, str]:
        found = re.search(r'<p class="empty">(.*?)</p>', response.text)
        return response.status_code, unescape(found[1]) if found else response.text

    assert message(bob.get(path, params=query)) == (403, "You do not have permission to see the images of this DAG.")
    assert message(ann.get("/imagen/nowhere")) == (404, "There is no such image or page.")
    assert message(ann.get(path, params={"dag_id": gallery.run.dag_id})) == (422, "This URL is incomplete or invalid.")
    assert message(ann.get(*gallery.file(9)[:1], params=gallery.file(9)[1])) == (
        404,
        "There is no such image, or its record was deleted.",
    )
    assert message(ann.get(*gallery.file()[:1], params=gallery.file()[1]))[0] == 404  # never stored
    assert message(nobody.get(*gallery.file()[:1], params=gallery.file()[1])) == (401, "You are not logged in.")


def test_the_login_returns_to_the_page(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    path, query = gallery.task()

    location = visit(None).get(path, params=query).headers["location"]

    back = parse_qs(urlsplit(location).query)["next"][0]
    assert urlsplit(location).path == "/api/v2/auth/login"
    assert urlsplit(back).path == path
    assert {name: value[0] for name, value in parse_qs(urlsplit(back).query).items()} == query


# --- links and snippets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://cdn.test/a.png?x=1", "https://cdn.test"),
        ("https://me@cdn.test:8443/a.png", "https://cdn.test:8443"),
        ("http://127.0.0.1:8000/a.png", "http://127.0.0.1:8000"),
        ("http://localhost/a.png", "http://localhost"),
        ("http://[::1]:80/a.png", "http://[::1]:80"),
        ("http://cdn.test/a.png", None),
        (None, None),
    ],
)
def test_a_page_may_load_images_only_from_the_servers_that_host_them(url: str | None, origin: str | None) -> None:
    image = GalleryImage(ti=TI, prompt_index=0, image_index=0, url=url)
    stored = GalleryImage(
        ti=TI,
        prompt_index=0,
        image_index=1,
        url="https://elsewhere.test/b.png",
        path="/b.png",
        bytes=1,
        sha256="0" * 64,
    )

    assert remote_link(image.url) == (url if origin else None)
    assert image_sources([stored, image, image]) == " ".join(sorted({"'self'", origin or "'self'"}))


def image_with(**values: Any) -> GalleryImage:
    return GalleryImage(ti=TI, prompt_index=0, image_index=0, **{"prompt": "a fox", "model": "m", **values})


def test_the_snippet_contains_exactly_what_was_recorded() -> None:
    arguments = {
        "model": "asked for",
        "aspect_ratio": "16:9",
        "enhance_prompt": False,
        "num_images": 4,
        "input_images": None,
        "parameters": {"negative_prompt": None, "loras": [{"path": "x", "scale": 0.5}]},
        "output_path": "s3://conn@media/a",
        "provenance": {"alt_text": "{{ not rendered }}"},
    }
    image = image_with(seed=5, name="fox", metadata={"sku": "7", "alt_text": None}, arguments=json.dumps(arguments))

    assert snippet(image) == (
        "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator\n\n"
        "ImagenGenerateOperator(\n"
        "    task_id='t',\n"
        "    prompt={'prompt': 'a fox', 'name': 'fox', 'metadata': {'sku': '7'}},\n"
        "    model='asked for',\n    num_images=4,\n    aspect_ratio='16:9',\n    enhance_prompt=False,\n"
        "    parameters={'loras': [{'path': 'x', 'scale': 0.5}]},\n"
        "    output_path='s3://conn@media/a',\n"
        "    provenance={'alt_text': '{{ not rendered }}'},\n"
        "    # input_images: not recorded; it held an image, or a URL with a login or a query.\n"
        "    # parameters['negative_prompt']: not recorded; it held an image, or a URL with a login or a query.\n"
        "    # seed=5 is what the API reported for this image; none was requested.\n"
        ")\n"
    )


@pytest.mark.parametrize(
    "arguments", [None, "", "no json", "[1]", '"text"', "{", '{"a":' + "[" * 40 + "]" * 40 + "}", "[" * 9_000]
)
def test_the_snippet_of_an_image_without_readable_arguments_says_so(arguments: str | None) -> None:
    assert snippet(image_with(seed=5, arguments=arguments)).endswith(
        "    task_id='t',\n    prompt='a fox',\n    model='m',\n    seed=5,\n"
        "    # This image's record does not hold the other arguments.\n)\n"
    )


@pytest.mark.parametrize("value", [[1], "text", 7, None, True])
def test_recorded_parameters_of_another_type_do_not_break_the_snippet(value: Any) -> None:
    code = snippet(image_with(arguments=json.dumps({"parameters": value, "model": value})))

    ast.parse(code)


def test_recorded_arguments_cannot_add_code() -> None:
    hostile = "x=1); import os #"
    arguments = {hostile: 1, "task_id": "a", "self": 1, "prompt": "b", "parameters": {f"{hostile}\nimport os": None}}

    code = snippet(image_with(arguments=json.dumps(arguments)))

    (call,) = (node.value for node in ast.parse(code).body if isinstance(node, ast.Expr))
    assert [keyword.arg for keyword in call.keywords] == ["task_id", "prompt"]
    assert ast.literal_eval(call.keywords[1].value) == "a fox"


# --- the cache --------------------------------------------------------------------------------------------------------


def test_results_expire_and_the_least_recently_used_is_evicted_first() -> None:
    now = [0.0]
    memory: ExpiringCache[str] = ExpiringCache(
        entries=2, seconds=10.0, max_bytes=10_000, size_of=len, clock=lambda: now[0]
    )
    worked: list[str] = []

    async def ask(key: str, result: str) -> str:
        async def work() -> str:
            worked.append(result)
            return result

        return await memory.get(key, work)

    async def check() -> None:
        assert await ask("a", "a1") == await ask("a", "a2") == "a1"
        assert memory.knows("a")
        now[0] = 9.9
        assert await ask("a", "a3") == "a1"
        now[0] = 10.0
        assert not memory.knows("a")
        assert await ask("a", "a4") == "a4"
        assert await ask("b", "b1") == "b1"
        assert await ask("a", "a5") == "a4"  # now "b" is the least recently used
        assert await ask("c", "c1") == "c1"
        assert [key for key in "abc" if memory.knows(key)] == ["a", "c"]

    asyncio.run(check())
    assert worked == ["a1", "a4", "b1", "c1"]


def test_concurrent_callers_share_the_work_and_errors_are_not_cached() -> None:
    memory: ExpiringCache[int] = ExpiringCache(entries=9, seconds=10.0, max_bytes=10_000, size_of=int)
    calls: list[int] = []

    async def check() -> None:
        async def work() -> int:
            calls.append(1)
            await asyncio.sleep(0.01)
            if len(calls) == 1:
                raise ValueError("away")
            return len(calls)

        found = await asyncio.gather(*(memory.get("a", work) for _ in range(5)), return_exceptions=True)
        assert isinstance(found[0], ValueError)
        assert found[1:] == [2] * 4

    asyncio.run(check())
    assert memory._locks == {}


def test_more_entries_than_one_airflow_page_are_all_found(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("more_than_a_page", schedule=None) as dag:

        @task
        def paint(numbers: list[int], ti: Any = None) -> None:
            for number in numbers:
                ti.xcom_push(key=f"summary {number}", value=1)  # sorts after ours and belongs to another tool
            ti.xcom_push(key="images", value=[record()])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.01})

        paint.override(task_id="a")(list(range(120)))
        paint.override(task_id="b")([])
    ids = {"dag_id": "more_than_a_page", "run_id": run_dag(dag).run_id}

    page = visit().get("/imagen/run", params=ids).text

    assert totals(page)["Generated"] == "2 of 2"
    assert re.findall(r"<h2><a [^>]*>(.*?)</a></h2>", page) == ["a", "b"]
