"""The page about all DAGs: whose images a visitor sees, what is counted, and what that costs the web server."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from airflow_provider_imagen.bill import LineItem, subtotals
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.plugins.gallery import all_dags, all_dags_reader, list_routes, shared_readers
from airflow_provider_imagen.plugins.gallery.all_dags import Period
from airflow_provider_imagen.plugins.gallery.all_dags_reader import IMAGES_PER_DAG, AllDagsReader
from airflow_provider_imagen.plugins.gallery.collection import Collection
from airflow_provider_imagen.sandbox import Fault

from .test_gallery import links, record
from .test_gallery_values import numbered, prompts, totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

NO_DAG = "There is no DAG whose images you may see."
NO_IMAGES = "No DAG whose images you may see has generated any in the last 7 days, or tried to."


class Clock:
    """A clock on which time passes only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give each test an empty cache, whose clock stands still."""
    clock = Clock()
    monkeypatch.setattr(shared_readers, "collection", Collection(clock=clock))
    monkeypatch.setattr(shared_readers, "all_dags", AllDagsReader(shared_readers.collection, clock=clock))
    return clock


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the gallery's calls to Airflow's API, in order."""
    paths: list[str] = []
    send = httpx.ASGITransport.handle_async_request

    async def record_path(self: Any, request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return await send(self, request)

    monkeypatch.setattr(httpx.ASGITransport, "handle_async_request", record_path)
    return paths


@pytest.fixture
def publish(run_dag: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs a DAG whose tasks push arbitrary results to XCom, one list of records per task."""
    from airflow.sdk import DAG, literal, task

    def publish(dag_id: str, *images: Any, **summary: Any) -> Any:
        with DAG(dag_id, schedule=None) as dag:
            for number, records in enumerate(images or ([],)):

                @task(task_id=f"paint_{number}")
                def paint(records: Any, ti: Any = None) -> None:
                    ti.xcom_push(key="images", value=records)
                    counts = {"requested": len(records), "made": len(records), "usd_spent": 0.01 * len(records)}
                    ti.xcom_push(key="summary", value=counts | summary)

                paint(literal(records))
        return run_dag(dag)

    return publish


def open_page(ann: Any, **query: Any) -> str:
    page = ann.get("/imagen/dags", params=query)
    assert page.status_code == 200
    return page.text


def dag_ids(html: str) -> list[str]:
    """Return the DAGs of a page, in order."""
    return [unescape(found) for found in re.findall(r'<section class="newest" data-key="([^"]*)"', html)]


def chart(html: str, key: str) -> dict[str, list[str]]:
    """Return the rows of a chart's table by their headings, without the total of each row."""
    (table,) = re.findall(rf'id="{key}-title".*?<table>(.*?)</table>', html, re.DOTALL)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return {row[0]: row[1:-1] for row in rows}


def age(dag_id: str, days: float) -> None:
    """Make what a DAG has done older."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    then = datetime.now(UTC) - timedelta(days=days)
    with create_session() as session:
        session.query(XComModel).where(XComModel.dag_id == dag_id).update({"timestamp": then})
        session.query(TaskInstance).where(TaskInstance.dag_id == dag_id).update({"end_date": then})


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_a_visitor_sees_only_dags_that_they_may_read(publish: Any, visit: Any) -> None:
    publish("cards", [record(prompt="A secret card")], usd_spent=1.5)
    publish("posters", [record(prompt="A poster")], usd_spent=0.5)

    everything = open_page(visit("ann"))
    part = open_page(visit("bob", only={"posters"}))

    assert sorted(dag_ids(everything)) == ["cards", "posters"]
    assert totals(everything)["Spent"] == "$2.00"
    assert dag_ids(part) == ["posters"]
    assert totals(part) == {"DAGs": "1", "Images": "1", "Spent": "$0.50"}
    assert "cards" not in part
    assert "secret" not in part


@pytest.mark.parametrize("entity", ["XCOM", "RUN", "TASK_INSTANCE"])
@pytest.mark.parametrize("comes_first", [True, False])
def test_a_dag_is_shown_only_to_those_who_may_open_its_page(
    publish: Any, visit: Any, entity: str, comes_first: bool
) -> None:
    """Airflow's lists show every DAG that a user may read, whether or not they may read its XComs."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

    publish("cards", [record(prompt="A secret card")])
    publish("posters", [record()])
    ann = visit("ann")
    if not comes_first:  # then the cache has everything
        open_page(ann)
    bob = visit("bob", without={("cards", DagAccessEntity[entity])})

    assert bob.get("/imagen/dag", params={"dag_id": "cards"}).status_code == 403
    page = open_page(bob)
    assert dag_ids(page) == ["posters"]
    assert "secret" not in page
    assert "cards" not in page


def test_a_permission_that_is_withdrawn_counts_at_once(publish: Any, visit: Any) -> None:
    publish("cards", [record()])
    bob = visit("bob")
    assert dag_ids(open_page(bob)) == ["cards"]

    visit("bob", only=set())

    assert NO_DAG in open_page(bob)


def test_the_lists_of_visitors_who_may_read_different_dags_are_kept_apart(publish: Any, visit: Any) -> None:
    publish("cards", [record()])
    publish("posters", [record()])
    shown = {
        name: dag_ids(open_page(visit(name, only=only)))
        for name, only in (("ann", {"cards"}), ("bob", {"posters"}), ("cyd", {"cards", "posters"}))
    }

    assert {name: set(found) for name, found in shown.items()} == {
        "ann": {"cards"},
        "bob": {"posters"},
        "cyd": {"cards", "posters"},
    }


def test_a_visitor_who_may_read_no_dag_gets_an_explanation(publish: Any, visit: Any) -> None:
    publish("cards", [record()])
    page = open_page(visit("bob", only=set()))

    assert NO_DAG in page
    assert "permission to read a DAG, its runs, its task instances and its XComs" in page
    assert "cards" not in page
    assert "<svg" not in page


def test_a_visitor_without_a_session_logs_in_first(publish: Any, visit: Any) -> None:
    publish("cards", [record()])
    response = visit(None).get("/imagen/dags", params={"days": "30"})

    assert response.status_code == 302
    assert urlsplit(response.headers["location"]).path == "/api/v2/auth/login"
    assert "cards" not in response.text


def test_what_a_dag_publishes_is_shown_as_text(publish: Any, visit: Any) -> None:
    publish("cards", [record(prompt="<b>{{ 7 * 7 }}</b>")], usd_by_model={"<i>a-model</i>": 0.01})
    response = visit().get("/imagen/dags")

    assert prompts(response.text) == ["<b>{{ 7 * 7 }}</b>"]
    assert "<b>{{" not in response.text
    assert "<i>a" not in response.text
    assert not re.search(r"<script>|<style|style=|\son\w+=", response.text)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_costs_come_with_their_models_and_failures_with_their_day(
    run_dag: Any, visit: Any, imagen_connection: str, sandbox: Sandbox
) -> None:
    from airflow.sdk import DAG

    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    with DAG("mixed", schedule=None) as dag:
        ImagenGenerateOperator(task_id="imagen", prompt=["a", "b"])
        ImagenGenerateOperator(task_id="flux", prompt=["a", "bad"], model="flux/schnell", retry_delay=timedelta(0))
    run = run_dag(dag)
    page = open_page(visit())
    today = datetime.now(UTC).date().isoformat()

    summaries = [run.get_task_instance(name).xcom_pull(task_ids=name, key="summary") for name in ("imagen", "flux")]
    for summary in summaries:
        assert sum(map(_decimal, summary["usd_by_model"].values())) == _decimal(summary["usd_spent"])
    amounts = {model: _decimal(usd) for summary in summaries for model, usd in summary["usd_by_model"].items()}
    costs = chart(page, "cost")
    shown = dict(zip(costs["Day"], (Decimal(cell.strip("$")) for cell in costs[today]), strict=True))
    assert shown == amounts
    assert set(amounts) == {"imagen-3.0-generate-002", "flux/schnell"}
    assert chart(page, "missing")[today] == ["1"]
    assert chart(page, "failed")[today] == ["1"]
    assert totals(page)["Failed tasks"] == totals(page)["Missing images"] == "1"
    assert '<span class="bad">1 failed task</span>' in page


def _decimal(usd: float) -> Decimal:
    return Decimal(str(usd))


class Posters(ImagenGenerateOperator):
    """An operator of a user."""


def test_failed_tasks_are_counted_even_without_results_and_those_of_other_operators_are_not(
    run_dag: Any, visit: Any, imagen_connection: str
) -> None:
    from airflow.sdk import DAG, task

    with DAG("rejected", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt="a", seed=-1)

        @task
        def other() -> None:
            raise ValueError

        other()
    run_dag(dag)
    with DAG("derived", schedule=None) as dag:
        Posters(task_id="paint", prompt="a")
        Posters(task_id="rejected", prompt="a", seed=-1)
    run_dag(dag)
    with DAG("never_published", schedule=None) as dag:
        Posters(task_id="rejected", prompt="a", seed=-1)
    run_dag(dag)
    page = open_page(visit())

    assert totals(page)["Failed tasks"] == "3"
    assert set(dag_ids(page)) == {"rejected", "derived", "never_published"}


def test_each_dag_shows_its_newest_images_and_links_to_its_pages(publish: Any, visit: Any) -> None:
    publish("cards", numbered(4), numbered(4), numbered(4))
    publish("posters", numbered(1))
    page = open_page(visit())

    assert dag_ids(page) == ["posters", "cards"]
    assert len(prompts(page)) == 1 + IMAGES_PER_DAG
    assert "12 images" in page
    assert {"/imagen/dag?dag_id=cards", "/imagen/dag?dag_id=posters", "/dags/cards", "/dags/posters"} <= set(
        links(page)
    )
    assert all(visit().get(link).status_code == 200 for link in links(page) if link.startswith("/imagen/"))


def test_the_period_is_in_the_url(publish: Any, visit: Any) -> None:
    publish("new", [record()])
    publish("old", [record()])
    publish("ancient", [record()])
    age("old", 20)
    age("ancient", 40)
    ann = visit()

    assert dag_ids(open_page(ann)) == dag_ids(open_page(ann, days="7")) == ["new"]
    month = open_page(ann, days="30")
    assert dag_ids(month) == ["new", "old"]
    assert len(chart(month, "cost")) == 30 + 2  # with the head and the total
    assert ann.get("/imagen/dags", params={"days": "365"}).status_code == 422


def test_days_begin_at_midnight_on_the_machine_even_before_its_clocks_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        period = Period.until(datetime(2026, 11, 1, 12, tzinfo=UTC), days=30, zone=None)
        in_summer = datetime(2026, 10, 5, 22, 30, tzinfo=UTC)  # 0:30 in Berlin

        assert period.since == datetime(2026, 10, 2, 22, tzinfo=UTC)
        assert period.day_of(in_summer) == date(2026, 10, 6)
        (subtotal,) = subtotals([LineItem(at=in_summer, usd=Decimal(1))], ["day"], zone=period.zone)
        assert subtotal.group == ("2026-10-06",)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_without_images_the_page_says_so(run_dag: Any, visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("other", schedule=None) as dag:

        @task
        def other() -> None: ...

        other()
    run_dag(dag)

    page = open_page(visit())
    assert NO_IMAGES in page
    assert NO_DAG not in page


def test_a_page_beyond_the_last_is_the_last(publish: Any, visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_routes, "DAGS_PER_PAGE", 2)
    for name in ("a", "b", "c"):
        publish(name, [record()])
    ann = visit()

    assert dag_ids(open_page(ann)) == ["c", "b"]
    assert dag_ids(open_page(ann, page=2)) == dag_ids(open_page(ann, page=9)) == ["a"]
    assert "Page 2 of 2" in open_page(ann, page=9)


@pytest.mark.parametrize(
    "summary",
    [
        "no summary",
        ["requested", "made", "usd_spent"],
        {"requested": "x", "made": None, "usd_spent": "much"},
        {"requested": 1, "made": 1, "usd_spent": 1e300, "usd_by_model": {"m": -1}},
        {"requested": 1, "made": 1, "usd_spent": 0.1, "usd_by_model": [1]},
        {"requested": 1, "made": 1, "usd_spent": 0.1, "usd_by_model": {"m" * 1000: 0.1}},
        {"requested": 2**70, "made": -5, "usd_spent": 0.1, "usd_by_model": {str(n): 0.1 for n in range(1000)}},
    ],
)
def test_damaged_summaries_do_not_break_the_page(run_dag: Any, visit: Any, summary: Any) -> None:
    """XComs of this name may also be those of other operators; their DAGs are not shown."""
    from airflow.sdk import DAG, task

    with DAG("damaged", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="summary", value=summary)

        paint()
    run_dag(dag)

    is_ours = isinstance(summary, dict)
    assert dag_ids(open_page(visit())) == ["damaged"] * is_ours


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_second_page_load_makes_no_calls(publish: Any, visit: Any, calls: list[str], clock: Clock) -> None:
    publish("cards", numbered(3), numbered(3))
    ann = visit()
    first = open_page(ann)
    calls.clear()

    assert open_page(ann) == first
    assert calls == []
    clock.now += 60  # the lists expire, what they name does not
    assert open_page(ann) == first
    assert len(calls) == 3
    assert all("/dagRuns/~/taskInstances" in path for path in calls)


@pytest.mark.parametrize("age_days", [0, 20])
def test_new_results_are_shown_when_the_list_expires(publish: Any, visit: Any, clock: Clock, age_days: int) -> None:
    publish("cards", *([[record()]] * 3))
    age("cards", age_days)
    ann = visit()
    before = totals(open_page(ann)).get("Images", "0")
    publish("cards", [record()])
    assert totals(open_page(ann)).get("Images", "0") == before

    clock.now += 60

    assert totals(open_page(ann))["Images"] == str(int(before) + 1)


def test_deleted_results_disappear_in_time(publish: Any, visit: Any, clock: Clock) -> None:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    publish("cards", [record()])
    publish("cards", [record()])
    ann = visit()
    assert totals(open_page(ann))["Images"] == "2"
    with create_session() as session:
        session.delete(session.query(XComModel).filter_by(key="summary").first())

    clock.now += 3600

    assert totals(open_page(ann))["Images"] == "1"


def test_counting_stops_in_time_and_goes_on_with_the_next_request(
    publish: Any, visit: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("cards", *([[record()]] * 20), usd_spent=1.0)
    ticks = iter(range(100_000))
    monkeypatch.setattr(shared_readers, "collection", Collection(clock=lambda: next(ticks) * 0.2))
    monkeypatch.setattr(shared_readers, "all_dags", AllDagsReader(shared_readers.collection, clock=Clock()))
    ann = visit()

    pages = [open_page(ann) for _ in range(3)]

    assert [totals(page)["Spent"] for page in pages] == ["$8.00", "$16.00", "$20.00"]
    assert "12 more tasks are not counted yet. This page updates itself." in pages[0]
    assert "4 more tasks are not counted yet." in pages[1]
    assert "not counted" not in pages[2]
    refresh = [float(re.search(r'data-refresh-seconds="([\d.]+)"', page)[1]) for page in pages]
    assert refresh == [2.0, 2.0, 60.0]


def test_very_many_tasks_are_counted_up_to_a_limit_and_the_page_says_so(
    publish: Any, visit: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("cards", *([[record()]] * 120))
    monkeypatch.setattr(all_dags_reader, "MAX_TASKS", 100)
    monkeypatch.setattr(all_dags, "MAX_TASKS", 100)

    page = open_page(visit())

    assert totals(page)["Images"] == "100"
    assert "Only the latest tasks are counted: about 100 with images" in page
    assert sum(path.endswith("/~/taskInstances/~/xcomEntries") for path in calls) == 2  # the list and what is new
