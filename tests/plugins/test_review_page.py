"""The review page: what a person sees, and what reaches the next task, with the answer given through Airflow's API."""

from __future__ import annotations

import html
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen._compat import get_dag_bag
from airflow_provider_imagen.review import read_review, review_form

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

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

    :param mark: returns the verdict on an image without its place, given the task and the image's number; ``None`` for
        no verdict
    """

    def __init__(self, client: Any, dag_id: str, mark: Callable[[str, int], dict[str, Any] | None]) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._runs = f"/api/v2/dags/{dag_id}/dagRuns"
        self._mark = mark
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
