"""Comparisons of images, the table of prompts and models, and what the lightbox needs of a card."""

from __future__ import annotations

import re
import runpy
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from doc_snippets import find_block

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.plugins.gallery.comparison import compare
from airflow_provider_imagen.plugins.gallery.image_ids import image_id, parse_image_id
from airflow_provider_imagen.plugins.gallery.matrix import IMAGES_PER_CELL, MAX_MODELS, arrange, compares_models
from airflow_provider_imagen.plugins.gallery.task_results import Problem, read_images
from airflow_provider_imagen.sandbox import Fault

from .test_gallery import links, picture_file, record

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

IMAGEN, FLUX = "imagen-3.0-generate-002", "flux/schnell"
TI = TaskInstance("a_dag", "a_run", "a_task")


def images(*records: dict[str, Any], ti: TaskInstance = TI) -> list[Any]:
    """Return the images of records, numbered in this order."""
    return read_images(ti, [record(**{"prompt_index": number, **each}) for number, each in enumerate(records)])


def marked(passages: list[Any]) -> str:
    return "".join(f"[{each.text}]" if each.is_changed else each.text for each in passages)


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_a_comparison_lists_what_differs_for_each_image_and_the_rest_once() -> None:
    arguments = '{"model": "x", "aspect_ratio": "1:1", "parameters": {"style": %s}}'
    found = compare(
        images(
            {"model": "one", "seed": 1, "usd": 0.04, "width": 8, "height": 9, "arguments": arguments % '"ink"'},
            {"model": "two", "seed": 1, "width": 9, "height": 9, "arguments": arguments % '"oil"'},
            {"model": "two", "usd": None, "width": 9, "height": 9, "metadata": {"campaign": "autumn"}},
        )
    )

    shown = {name: [marked(each.differing[name]) for each in found.images] for name in found.images[0].differing}
    assert shown == {
        "Model": ["[one]", "[two]", "[two]"],
        "Seed": ["[1]", "[1]", ""],
        "Size": ["[8×9]", "[9×9]", "[9×9]"],
        "Cost": ["[$0.04]", "[$0.01]", ""],
        "aspect_ratio": ["[1:1]", "[1:1]", ""],
        "style": ["[ink]", "[oil]", ""],
        "campaign (metadata)": ["", "", "[autumn]"],
    }
    assert found.common == {"Prompt": "a prompt"}


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        (["a red fox", "a blue fox"], ["a [red ]fox", "a [blue ]fox"]),
        (["A fox, in ink.", "a fox in oil"], ["A fox, in [ink.]", "a fox in [oil]"]),
        (["one two three", "three"], ["[one two ]three", "three"]),
        (["x a", "x b", "x a"], ["x [a]", "x [b]", "x [a]"]),
        (["fox and owl", "owl and fox"], ["fox and owl", "owl and fox"]),
        (["fox", ""], ["[fox]", ""]),
    ],
)
def test_the_words_that_not_all_prompts_have_are_marked(prompts: list[str], shown: list[str]) -> None:
    found = compare(images(*({"prompt": prompt} for prompt in prompts)))

    assert [marked(each.differing["Prompt"]) for each in found.images] == shown


@pytest.mark.parametrize(
    "name", ["Prompt", "Name", "Model", "Seed", "Size", "Type", "Cost", "Rewritten as", "style", "campaign"]
)
def test_metadata_is_compared_whatever_its_name_and_cannot_pass_for_anything_else(name: str) -> None:
    known = {"name": "a", "mime_type": "image/png", "width": 8, "height": 8, "enhanced_prompt": "a fox"}
    known |= {"seed": 1, "arguments": '{"parameters": {"style": "ink"}}'}

    plain = compare(images(known, known))
    found = compare(images({**known, "metadata": {name: "one"}}, {**known, "metadata": {name: "two"}}))

    assert [marked(each.differing[f"{name} (metadata)"]) for each in found.images] == ["[one]", "[two]"]
    assert found.common == plain.common


def test_a_page_compares_the_images_that_its_url_names_in_that_order(forged: Any, visit: Any, tmp_path: Path) -> None:
    files = [picture_file(tmp_path / f"{colour}.png", colour) for colour in ("red", "green", "blue")]
    gallery = forged([record(prompt_index=n, prompt=f"<i>fox</i> {n}", **file) for n, file in enumerate(files)])

    page = visit().get("/imagen/compare", params={**gallery.ids, "image": ["paint:-1:2:0", "paint:-1:0:0"]})

    assert page.status_code == 200
    sources = [parse_qs(urlsplit(link).query) for link in links(page.text, "src") if "/file" in link]
    assert [(each["prompt_index"], each["size"]) for each in sources] == [(["2"], ["full"]), (["0"], ["full"])]
    assert "&lt;i&gt;fox&lt;/i&gt; <mark>2</mark>" in page.text
    assert "<dt>Model</dt>" in page.text.partition("The same in all of them")[2]
    assert "img-src 'self';" in page.headers["content-security-policy"]


def test_images_of_different_tasks_can_be_compared(run_dag: Any, visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("different_tasks", schedule=None) as dag:

        @task
        def paint(number: int, ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record(prompt=f"fox {number}")])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.01})

        paint.override(task_id="group.dotted")(7)
        paint.expand(number=[0, 1])
    ids = {"dag_id": "different_tasks", "run_id": run_dag(dag).run_id}

    page = visit().get("/imagen/compare", params={**ids, "image": ["group.dotted:-1:0:0", "paint:1:0:0"]})

    assert re.findall(r"fox <mark>(\d)</mark>", page.text) == ["7", "1"]


@pytest.mark.parametrize(
    ("chosen", "status", "message"),
    [
        ([], 422, "Choose two to four images to compare. You have chosen 0."),
        (["paint:-1:0:0"], 422, "You have chosen 1."),
        (["paint:-1:0:0", "paint:-1:0:0"], 422, "You have chosen 1."),
        ([f"paint:-1:{n}:0" for n in range(5)], 422, "You have chosen 5."),
        ([f"paint:-1:{n}:0" for n in range(2000)], 422, "You have chosen 2,000."),
        (["paint:-1:0:0", "paint:-1:0"], 422, "an image that cannot exist"),
        (["paint:-1:0:0", "paint:-1:0:99999999999"], 422, "an image that cannot exist"),
        (["paint:-1:0:0", "paint:-1:9:0"], 404, "There is no such image"),
        (["paint:-1:0:0", "other:-1:0:0"], 404, "There is no such image"),
        (["paint:-1:0:0", "paint:4:0:0"], 404, "There is no such image"),
    ],
)
def test_what_cannot_be_compared_is_explained(
    forged: Any, visit: Any, chosen: list[str], status: int, message: str
) -> None:
    gallery = forged([record(prompt_index=n) for n in range(3)])

    page = visit().get("/imagen/compare", params={**gallery.ids, "image": chosen})

    assert page.status_code == status
    assert message in page.text
    assert any("/imagen/run?" in link for link in links(page.text))


@pytest.mark.parametrize("task_id", ["paint", "group.inner.paint", "ünïcode", "x" * 250])
@pytest.mark.parametrize("map_index", [-1, 0, 2**31 - 1])
def test_an_id_names_its_image(task_id: str, map_index: int) -> None:
    ti = TaskInstance("a_dag", "a_run", task_id, map_index)
    (image,) = images({"prompt_index": 3, "image_index": 2}, ti=ti)

    assert parse_image_id(image_id(image)) == (task_id, map_index, 3, 2)


@pytest.mark.parametrize(
    "text", ["", "a", "a:0:0", ":0:0:0", "a:-2:0:0", "a:0:-1:0", "a:0:0:٣", "a:0:0:1 ", "a:0:0:2147483648", "a:b:0:0\n"]
)
def test_a_text_that_is_no_id_names_no_image(text: str) -> None:
    assert parse_image_id(text) is None


# --- prompts and models -----------------------------------------------------------------------------------------------


def test_rows_and_columns_are_in_the_order_of_their_first_image() -> None:
    matrix = arrange(
        [
            *images({"prompt": "owl", "model": "b", "usd": 0.04}, {"prompt": "fox", "model": "a", "usd": None}),
            Problem(ti=TI, prompt="fox", model="b", message="withheld", usd=0.02),
            *images({"prompt": "fox", "model": "a"}, {"prompt": "", "model": "c"}),
        ]
    )

    assert {name: (each.images, each.usd, each.unpriced) for name, each in matrix.columns.items()} == {
        "b": (1, 0.06, 0),
        "a": (2, 0.01, 1),
    }
    assert [row.heading for row in matrix.rows] == ["owl", "fox"]
    assert [entry.model for entry in matrix.left_out] == ["c"]
    fox = matrix.rows[1]
    assert [len(fox.cell(model).images) for model in "bax"] == [0, 2, 0]
    assert [problem.message for problem in fox.cell("b").problems] == ["withheld"]
    assert fox.choose(matrix.models) == []


@pytest.mark.parametrize(
    ("made", "answer"),
    [
        ([], False),
        ([("fox", "a"), ("fox", "a"), ("owl", "b")], False),
        ([("fox", "a"), ("owl", "b"), ("fox", "b")], True),
        ([("fox", "a"), ("fox", None), ("", "a"), ("", "b")], False),
    ],
)
def test_a_run_compares_models_if_two_made_images_of_one_prompt(made: Any, answer: bool) -> None:
    assert compares_models(made) is answer


def cells(html: str) -> list[list[str]]:
    """Return the cells of a table's body, each as the text that it shows."""
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", body, re.S)]
    hidden = r'<span class="(?:prompt|name|metadata|unavailable)".*?</span>|<[^>]+>'
    return [[" ".join(unescape(re.sub(hidden, " ", cell, flags=re.S)).split()) for cell in row] for row in rows]


def test_a_table_shows_each_models_images_of_each_prompt_and_why_others_are_missing(
    painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="owl"))
    prompts = [("fox", IMAGEN), ("fox", FLUX), ("owl", IMAGEN), ("owl", FLUX), ("hen", FLUX)]
    gallery = painted(
        prompt=[{"prompt": prompt, "model": model} for prompt, model in prompts],
        on_failure="accept",
        output_path=str(tmp_path),
        concurrency=1,
    )
    ann = visit()

    run = ann.get("/imagen/run", params=gallery.ids).text
    (address,) = {link for link in links(run) if "/matrix?" in link}
    page = ann.get(address)

    headings = re.findall(r'<th scope="col">(.*?)\s*(?:<span class="details">(.*?)</span>)?</th>', page.text, re.S)
    assert [heading for heading, _ in headings] == ["Prompt", IMAGEN, FLUX]
    assert headings[1][1].startswith("$")
    fox, owl, hen = cells(page.text)
    assert fox[0] == "fox Compare"
    assert all(f"· ${cost}" in cell for cell, cost in zip(fox[1:], ("0.042", "0.0"), strict=True))
    assert owl[0] == "owl"
    assert owl[1].startswith("Failed ")
    assert "$" in owl[2]
    assert (hen[0], hen[1]) == ("hen", "Not requested")
    (comparison,) = {link for link in links(page.text) if "/compare?" in link}
    assert parse_qs(urlsplit(comparison).query)["image"] == ["paint:-1:0:0", "paint:-1:1:0"]
    assert ann.get(comparison).status_code == 200


def test_a_mapped_run_that_compares_models_links_to_its_table(
    run_dag: Any, imagen_connection: str, visit: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    def link_of(dag_id: str, **mapped: Any) -> set[str]:
        with DAG(dag_id, schedule=None) as dag:
            ImagenGenerateOperator.partial(task_id="paint", output_path=str(tmp_path)).expand_kwargs(
                [dict(zip(mapped, values, strict=True)) for values in zip(*mapped.values(), strict=True)]
            )
        ids = {"dag_id": dag_id, "run_id": run_dag(dag).run_id}
        return {link for link in links(visit().get("/imagen/run", params=ids).text) if "/matrix?" in link}

    assert link_of("maps_models", prompt=["fox", "fox"], model=[IMAGEN, FLUX])
    assert not link_of("maps_both", prompt=["fox", "owl"], model=[IMAGEN, FLUX])
    assert not link_of("maps_seeds", prompt=["fox", "fox"], seed=[1, 2])


def test_the_example_in_the_docs_compares_models(
    run_dag: Any, imagen_connection: str, visit: Any, tmp_path: Path
) -> None:
    file = tmp_path / "example.py"
    file.write_text(find_block("compare models").text.replace("~/models", str(tmp_path)), "utf-8")
    run = run_dag(runpy.run_path(str(file))["dag"])

    table = visit().get("/imagen/matrix", params={"dag_id": run.dag_id, "run_id": run.run_id}).text

    assert "2 prompts and 2 models" in table
    assert table.count('class="card"') == 4


def test_the_rows_can_be_names(forged: Any, visit: Any) -> None:
    made = [("fox, by a", "fox", "a"), ("fox, by b", "fox", "b"), ("owl", None, "a")]
    gallery = forged(
        [record(prompt_index=n, prompt=prompt, name=name, model=model) for n, (prompt, name, model) in enumerate(made)]
    )
    ann = visit()

    by_prompt = ann.get("/imagen/matrix", params=gallery.ids).text
    (address,) = {link for link in links(by_prompt) if "rows=name" in link}
    by_name = ann.get(address).text

    assert [row[0] for row in cells(by_prompt)] == ["fox, by a", "fox, by b", "owl"]
    assert [row[0] for row in cells(by_name)] == ["fox Compare"]


@pytest.mark.parametrize(
    ("prompts", "failures", "rows", "note"),
    [
        (["fox", ""], 0, "prompt", "1 image without a prompt is not in this table or its costs."),
        (["fox", "", ""], 1, "prompt", "2 images and 1 failure without a prompt are not in this table or its costs."),
        (["fox"], 2, "name", "1 image and 2 failures without a name are not in this table or its costs."),
        (["fox"], 0, "prompt", None),
    ],
)
def test_a_table_says_what_it_leaves_out(
    run_dag: Any, visit: Any, prompts: list[str], failures: int, rows: str, note: str | None
) -> None:
    from airflow.sdk import DAG, task

    records = [record(prompt_index=number, prompt=prompt) for number, prompt in enumerate(prompts)]
    with DAG(f"leaves_out_{len(prompts)}_{failures}_{rows}", schedule=None) as dag:

        @task
        def paint(ti: Any = None) -> None:
            ti.xcom_push(key="images", value=records)
            ti.xcom_push(key="summary", value={"requested": len(records), "made": len(records), "usd_spent": 0.0})

        paint()
        for number in range(failures):
            ImagenGenerateOperator(task_id=f"fails_{number}", prompt="{{ nothing.at.all }}")
    run = run_dag(dag)

    page = visit().get("/imagen/matrix", params={"dag_id": run.dag_id, "run_id": run.run_id, "rows": rows}).text

    assert (note in page) if note else ("not in this table" not in page)


def test_two_thousand_images_are_paged_by_rows(forged: Any, visit: Any) -> None:
    gallery = forged(
        [record(prompt_index=n, prompt=f"fox {n // 4}", model=f"model {n % 4}") for n in range(2000)],
    )
    ann = visit()

    first, last = (ann.get("/imagen/matrix", params={**gallery.ids, "page": page}).text for page in (1, 25))

    assert (first.count('class="card"'), last.count('class="card"')) == (80, 80)
    assert "500 prompts and 4 models" in first
    assert "$5.00 · 500 images" in first
    assert "Page 1 of 25" in first
    assert cells(last)[-1][0] == "fox 499 Compare"


def test_a_table_is_bounded_in_models_and_in_images_per_cell(forged: Any, visit: Any) -> None:
    gallery = forged(
        [record(prompt_index=n, prompt="fox", model=f"model {n}") for n in range(MAX_MODELS + 5)]
        + [record(prompt_index=99, image_index=n, prompt="fox", model="model 0") for n in range(10)]
    )

    page = visit().get("/imagen/matrix", params=gallery.ids).text

    assert page.count('class="card"') == MAX_MODELS - 1 + IMAGES_PER_CELL
    assert f"Only the first {MAX_MODELS} of {MAX_MODELS + 5} models are shown." in page
    assert f"{11 - IMAGES_PER_CELL} more, on the page of the run" in page


def test_a_run_without_images_has_an_empty_table(forged: Any, visit: Any) -> None:
    gallery = forged([])

    page = visit().get("/imagen/matrix", params=gallery.ids)

    assert page.status_code == 200
    assert "No task in this run has generated images." in page.text


@pytest.mark.parametrize("query", [{"page": 0}, {"rows": "seed"}, {"run_id": ""}])
def test_a_table_rejects_unknown_values(forged: Any, visit: Any, query: dict[str, Any]) -> None:
    gallery = forged([record()])

    assert visit().get("/imagen/matrix", params={**gallery.ids, **query}).status_code == 422


@pytest.mark.parametrize("path", ["compare", "matrix"])
def test_a_run_that_does_not_exist_has_no_such_page(forged: Any, visit: Any, path: str) -> None:
    gallery = forged([record(), record(image_index=1)])
    query = {**gallery.ids, "run_id": "never", "image": ["paint:-1:0:0", "paint:-1:0:1"]}

    assert visit().get(f"/imagen/{path}", params=query).status_code == 404


# --- the lightbox -----------------------------------------------------------------------------------------------------


def test_a_card_names_its_full_image_unless_it_cannot_be_shown(forged: Any, visit: Any, tmp_path: Path) -> None:
    stored = record(image_index=0, metadata={"alt_text": "An <old> fox"}, **picture_file(tmp_path / "a.png"))
    remote = record(image_index=1, url="https://cdn.example/a.png")
    vector = record(image_index=2, url="https://cdn.example/a.svg", mime_type="image/svg+xml")
    gallery = forged([stored, remote, vector])
    ann = visit()

    page = ann.get(gallery.task()[0], params=gallery.task()[1]).text

    full = links(page, "data-full")
    assert ann.get(full[0]).headers["content-type"] == "image/png"
    assert full[1:] == ["https://cdn.example/a.png"]
    assert links(page, "data-alt") == ["An <old> fox"]
