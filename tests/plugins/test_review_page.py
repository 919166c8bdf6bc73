"""The review page: what a person sees, and what reaches the next task, with the answer given through Airflow's API."""

from __future__ import annotations

import html
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from airflow_provider_imagen._compat import get_dag_bag
from airflow_provider_imagen.review import read_review, review_form

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "example_dags"


def _articles(page: str) -> list[dict[str, str]]:
    """Return the data of the images on a page."""
    return [dict(re.findall(r'data-([\w-]+)="([^"]*)"', tag)) for tag in re.findall(r"<article ([^>]*)>", page)]


def _form(page: str) -> dict[str, str]:
    """Return what the page tells its script."""
    (tag,) = re.findall(r'<form id="answer" ([^>]*)>', page)
    return {name: html.unescape(value) for name, value in re.findall(r'data-([\w-]+)="([^"]*)"', tag)}


class Person(threading.Thread):
    """
    Opens the page of every review of a DAG from its link in the required action, marks images, and sends the answer.

    :param look: called with the URL of each review before it is answered
    :param mark: returns the verdict on an image without its place, given the task and the image's number; ``None`` for
        no verdict
    """

    def __init__(
        self,
        client: Any,
        dag_id: str,
        mark: Callable[[str, int], dict[str, Any] | None],
        look: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._runs = f"/api/v2/dags/{dag_id}/dagRuns"
        self._mark = mark
        self._look = look
        self._over = threading.Event()
        self.pages: dict[str, str] = {}
        self.run_pages: list[str] = []

    def run(self) -> None:
        while not self._over.is_set():
            found = self._client.get(f"{self._runs}/~/hitlDetails")
            for question in found.json()["hitl_details"] if found.status_code == 200 else ():
                if not question["response_received"]:
                    self._answer(question)
            time.sleep(0.2)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _answer(self, question: dict[str, Any]) -> None:
        ti = question["task_instance"]
        (address,) = re.findall(r"\]\((/imagen/review\S*)\)", question["body"])
        self._look(address)
        page = self.pages[ti["task_id"]] = self._client.get(address).text
        query = {"dag_id": ti["dag_id"], "run_id": ti["dag_run_id"]}
        self.run_pages.append(self._client.get("/imagen/run", params=query).text)
        form = _form(page)
        verdicts = []
        for image in _articles(page):
            verdict = self._mark(ti["task_id"], int(image["number"]))
            if verdict is not None:
                place = {name: int(image[name.replace("_", "-")]) for name in ("prompt_index", "image_index")}
                verdicts.append({**place, "sha256": image["sha256"], **verdict})
        answer = {
            "chosen_options": [form["option"]],
            "params_input": {**json.loads(form["other-params"]), form["param"]: verdicts},
        }
        assert self._client.patch(form["address"], json=answer).status_code == 200


@pytest.mark.usefixtures("imagen_connection")
def test_only_marked_images_are_made_again_and_only_favourites_are_published(
    run_dag: Callable[..., Any], visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    dag = get_dag_bag()[0](dag_folder=str(EXAMPLES / "imagen_review.py")).dags["imagen_review"]
    marks = {
        ("review", 1): {"choice": "favourite"},
        ("review", 3): {"choice": "new_seed", "reasons": ["Composition"], "comment": "{{ var.value.secret }}"},
        ("review", 6): {"choice": "new_prompt", "prompt": "A poster of a ferry at night, {{ run_id }}"},
        ("review", 8): {"choice": "reject"},
        ("review_again", 2): {"choice": "favourite"},
    }
    person = Person(visit(role="admin"), "imagen_review", lambda task_id, number: marks.get((task_id, number)))
    person.start()

    run = run_dag(dag, run_conf={"output_path": str(tmp_path)})

    person.stop()
    assert str(run.state) == "success"
    assert len(_articles(person.pages["review"])) == 8
    assert len(_articles(person.pages["review_again"])) == 2
    requests = sandbox.ledger()
    assert len(requests) == 4 + 2
    pull = run.get_task_instance("publish").xcom_pull
    first, second = (pull(task_ids=task_id, key="images") for task_id in ("paint", "again"))
    assert [image["prompt"] for image in second] == [first[2]["prompt"], "A poster of a ferry at night, {{ run_id }}"]
    assert second[0]["seed"] not in (7, None)
    assert second[1]["seed"] == 7
    assert pull(task_ids="publish", key="return_value") == [first[0]["path"], second[1]["path"]]


@pytest.mark.usefixtures("imagen_connection")
def test_the_run_goes_on_without_a_second_round_if_nothing_is_to_be_made_again(
    run_dag: Callable[..., Any], visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    dag = get_dag_bag()[0](dag_folder=str(EXAMPLES / "imagen_review.py")).dags["imagen_review"]
    person = Person(visit(role="admin"), "imagen_review", lambda *_: {"choice": "favourite"})
    person.start()

    run = run_dag(dag, run_conf={"output_path": str(tmp_path)})

    person.stop()
    assert str(run.state) == "success"
    assert str(run.get_task_instance("again").state) == "skipped"
    assert len(run.get_task_instance("publish").xcom_pull(task_ids="publish", key="return_value")) == 8
    assert len(sandbox.ledger()) == 4


def _records(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt_index": number, "image_index": 0, "prompt": f"<i>stamp</i> {number}", "sha256": "ab" * 32}
        for number in range(count)
    ]


@pytest.fixture
def reviewed(run_dag: Callable[..., Any], visit: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that runs a DAG with images and a review, and returns the run and the person who answered."""
    from airflow.providers.standard.operators.hitl import HITLOperator
    from airflow.sdk import DAG, task

    def run(
        count: int, mark: Callable[[int], dict[str, Any] | None], look: Callable[[str], None] = lambda _: None
    ) -> tuple[Any, Person]:
        with DAG(re.sub(r"\W+", "_", request.node.name)[:80], schedule=None, params={"size": 3}) as dag:

            @task
            def paint(ti: Any = None) -> None:
                ti.xcom_push(key="images", value=_records(count))
                ti.xcom_push(key="summary", value={"requested": count, "made": count, "usd_spent": 0.0})

            form = review_form("paint", reasons=["<b>Text</b>"])
            paint() >> HITLOperator(task_id="review", subject="Which <b>stamps</b>?", **form)
        person = Person(visit(role="admin"), dag.dag_id, lambda _, number: mark(number), look)
        person.start()
        found = run_dag(dag)
        person.stop()
        return found, person

    return run


def test_the_page_shows_what_the_task_asks_as_text_and_is_linked_while_it_waits(
    reviewed: Callable[..., Any], visit: Any
) -> None:
    run, person = reviewed(2, lambda _: {"choice": "reject", "reasons": ["Text"], "comment": "<script>x</script>"})

    page = person.pages["review"]
    assert "Which &lt;b&gt;stamps&lt;/b&gt;?" in page
    assert page.count("&lt;i&gt;stamp&lt;/i&gt; 0") >= 1
    assert 'value="&lt;b&gt;Text&lt;/b&gt;"' in page
    assert "review waits for a person to answer" in person.run_pages[0]
    ids = {"dag_id": run.dag_id, "run_id": run.run_id}
    assert "waits for a person" not in visit().get("/imagen/run", params=ids).text
    answered = visit().get("/imagen/review", params={**ids, "task_id": "review"}).text
    assert "Not good: Text" in answered
    assert "&lt;script&gt;x&lt;/script&gt;" in answered
    assert "<form" not in answered
    assert "review.js" not in answered
    for text in (page, answered):
        assert not re.search(r"<i>|<b>|<script>x", text)
    images = run.get_task_instance("paint").xcom_pull(task_ids="paint", key="images")
    answer = run.get_task_instance("review").xcom_pull(task_ids="review")
    assert len(read_review(answer, images).images) == 2


def test_who_may_only_read_gets_no_form_and_who_may_not_read_gets_nothing(
    reviewed: Callable[..., Any], visit: Any
) -> None:
    seen: dict[str, Any] = {}

    def look(address: str) -> None:
        seen["viewer"] = visit().get(address)
        seen["stranger"] = visit("bob", only=set()).get(address)
        seen["nobody"] = visit(None).get(address)
        own = _form(visit(role="admin").get(address).text)
        seen["answer"] = visit().patch(own["address"], json={"chosen_options": [own["option"]]})
        ids = dict(parse_qsl(urlsplit(address).query))
        for name in ("dag_id", "run_id", "task_id"):
            for trick in ("~", "..", ".", "x/../y", "a\\b", "a\0"):
                response = visit(role="admin").get("/imagen/review", params={**ids, name: trick})
                assert response.status_code in (403, 404), (name, trick)

    reviewed(2, lambda _: {"choice": "favourite"}, look)

    assert {name: response.status_code for name, response in seen.items()} == {
        "viewer": 200,
        "stranger": 403,
        "nobody": 302,
        "answer": 403,
    }
    assert "Airflow does not let you answer this task" in seen["viewer"].text
    assert len(_articles(seen["viewer"].text)) == 2
    assert "<form" not in seen["viewer"].text
    assert "review.js" not in seen["viewer"].text


def test_the_page_shows_images_that_were_stored_since_another_page_was_opened(
    reviewed: Callable[..., Any], visit: Any
) -> None:
    admin = visit(role="admin")

    def look(address: str) -> None:
        ids = {name: value for name, value in parse_qsl(urlsplit(address).query) if name in ("dag_id", "run_id")}
        xcoms = f"/api/v2/dags/{ids['dag_id']}/dagRuns/{ids['run_id']}/taskInstances/paint/xcomEntries"

        def publish(count: int, **summary: Any) -> None:
            counts = {"requested": 3, "made": count, "usd_spent": 0.0, **summary}
            for key, value in (("images", _records(count)), ("summary", counts)):
                assert admin.patch(f"{xcoms}/{key}", json={"value": value, "map_index": -1}).status_code == 200

        publish(1, in_progress=True)
        assert admin.get("/imagen/task", params={**ids, "task_id": "paint"}).status_code == 200
        publish(3)

    _, person = reviewed(3, lambda _: {"choice": "favourite"}, look)

    assert len(_articles(person.pages["review"])) == 3


def test_a_mapped_review_has_the_label_that_airflow_shows(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.providers.standard.operators.hitl import HITLOperator
    from airflow.sdk import DAG, task

    with DAG("mapped_review", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="images", value=_records(1))
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.0})

        paint() >> HITLOperator.partial(
            task_id="review", map_index_template="{{ task.subject }}", **review_form("paint", map_index=-1)
        ).expand(subject=["Stamps?"])
    addresses: list[str] = []
    person = Person(visit(role="admin"), dag.dag_id, lambda *_: {"choice": "favourite"}, addresses.append)
    person.start()
    run_dag(dag)
    person.stop()

    page = visit(role="admin").get(addresses[0]).text

    assert 'aria-current="page">review Stamps?</a>' in page


def test_two_thousand_images_are_on_pages_of_24(reviewed: Callable[..., Any], visit: Any) -> None:
    numbers: dict[int, list[int]] = {}

    def look(address: str) -> None:
        for page in (1, 2, 84, 99_999):
            response = visit(role="admin").get(f"{address}&page={page}")
            numbers[page] = [int(article["number"]) for article in _articles(response.text)]

    run, _ = reviewed(2000, lambda number: {"choice": "favourite"} if number <= 3 else None, look)

    assert numbers == {
        1: list(range(1, 25)),
        2: list(range(25, 49)),
        84: list(range(1993, 2001)),
        99_999: list(range(1993, 2001)),
    }
    answer = run.get_task_instance("review").xcom_pull(task_ids="review")
    assert len(read_review(answer, _records(2000)).favourites) == 3


def test_an_answer_that_airflow_cannot_use_fails_the_task_and_not_the_page(
    reviewed: Callable[..., Any], visit: Any
) -> None:
    run, _ = reviewed(2, lambda _: {"choice": "reject", "comment": "a" * 2001})

    assert str(run.get_task_instance("review").state) == "failed"
    ids = {"dag_id": run.dag_id, "run_id": run.run_id, "task_id": "review"}
    response = visit(role="admin").get("/imagen/review", params=ids)
    assert response.status_code == 200
    assert "answered" in response.text
    assert "<form" not in response.text


@pytest.mark.parametrize(("asking", "given", "reviewed"), [(-1, None, -1), (2, None, 2), (-1, 3, 3), (2, -1, -1)])
def test_a_review_in_a_mapped_task_group_is_about_the_instance_of_the_same_index(
    asking: int, given: int | None, reviewed: int
) -> None:
    from airflow_provider_imagen.plugins.gallery.airflow_api import Question, TaskInstance
    from airflow_provider_imagen.plugins.gallery.review_page import find_review

    params = {"verdicts": review_form("group.paint", map_index=given)["params"]["verdicts"].serialize()}
    question = Question(TaskInstance("dag", "run", "group.review", asking), "id", "awaiting_input", "Good?", params)

    review = find_review(question, can_answer=True)

    assert review is not None
    assert review.reviewed == TaskInstance("dag", "run", "group.paint", reviewed)


def test_the_page_of_a_task_without_a_review_leads_to_airflow(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.providers.standard.operators.hitl import HITLOperator
    from airflow.sdk import DAG

    with DAG("asks_something_else", schedule=None) as dag:
        HITLOperator(task_id="ask", subject="Tea?", options=["Yes", "No"], defaults="No")
    client = visit(role="admin")
    pages = []

    class Other(Person):
        def _answer(self, question: dict[str, Any]) -> None:
            ti = question["task_instance"]
            ids = {"dag_id": ti["dag_id"], "run_id": ti["dag_run_id"]}
            pages.append(client.get("/imagen/review", params={**ids, "task_id": "ask"}))
            pages.append(client.get("/imagen/review", params={**ids, "task_id": "never"}))
            path = f"{self._runs}/{ti['dag_run_id']}/taskInstances/ask/-1/hitlDetails"
            assert client.patch(path, json={"chosen_options": ["Yes"]}).status_code == 200

    person = Other(client, "asks_something_else", lambda *_: None)
    person.start()
    run_dag(dag)
    person.stop()

    asking, missing = pages
    assert "This task does not ask for a review of images." in asking.text
    assert "/tasks/ask/required_actions" in asking.text
    assert missing.status_code == 404
    assert "All images of this run" in missing.text
