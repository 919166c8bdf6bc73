"""The text that reviewers see, and the images that their response selects."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from doc_snippets import find_block

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import (
    Review,
    pick_images,
    quote_rest,
    read_images,
    read_review,
    review_body,
    review_form,
)

try:
    from airflow.sdk.exceptions import ParamValidationError
except ImportError:  # Airflow 3.1
    from airflow.exceptions import ParamValidationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

WITH_REUSE = " With reuse, images that are already in the folder are not paid for again."
IDS = {"dag_id": "d", "run_id": "r", "task_id": "paint"}


def _record(number: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "prompt_index": 0,
        "image_index": number,
        "prompt": f"prompt {number}",
        "path": f"/pictures/{number}.png",
        "sha256": "ab" * 32,
        "usd": 0.025,
        "model": "m",
        "seed": 7,
        "arguments": "{}",
        **values,
    }


def test_images_are_in_a_numbered_table_with_prompt_and_cost() -> None:
    body = review_body([_record(n) for n in range(3)], **IDS)

    head, rule, image_row, captions, *_, totals = body.splitlines()
    assert (head, rule) == ("|  |  |", "| --- | --- |")
    assert image_row.count("![Image") == 2
    assert [int(number) for number in re.findall(r"\*\*(\d+)\*\*", body)] == [1, 2, 3]
    assert captions == r"| **1** · prompt 0 · m · seed 7 · \$0\.025 | **2** · prompt 1 · m · seed 7 · \$0\.025 |"
    assert totals == r"3 images, \$0\.075."


def test_a_prompt_shared_by_all_images_is_shown_once() -> None:
    body = review_body([_record(n, prompt="a raccoon") for n in range(4)], **IDS)

    assert body.startswith("a raccoon\n\n|")
    assert body.count("raccoon") == 1


def test_images_are_shown_through_the_gallery_so_that_no_store_need_be_public() -> None:
    body = review_body([_record(path="s3://private/a.png")], **IDS)

    (source,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", body)
    assert urlsplit(source).path == "/imagen/file"
    assert parse_qs(urlsplit(source).query)["size"] == ["thumbnail"]
    assert "s3" not in body


def test_a_vector_image_is_only_linked() -> None:
    body = review_body([_record(mime_type="image/svg+xml")], task_id="paint", dag_id="d", run_id="r")

    assert "[Image 1 (SVG)](" in body
    assert "![" not in body


def test_an_image_that_was_not_stored_is_shown_from_its_url() -> None:
    body = review_body([_record(path=None, url="https://cdn.example/a b.png?x=(1)")], **IDS)

    assert "![Image 1](https://cdn.example/a%20b.png?x=%281%29)" in body


@pytest.mark.parametrize(
    "url",
    [
        *(
            "//tracker.example/a.png",
            "http://tracker.example/a.png",
            "HTTP://tracker.example/a.png",
            "/api/v2/dags",
            "a.png",
        ),
        *("javascript:alert(1)", "data:image/svg+xml,<svg/>", "ftp://x/a", "https://", "https:a.png", "https:///a.png"),
        *(
            "\\\\tracker.example\\a.png",
            " //tracker.example",
            "https://a\nb/a.png",
            "https://*/a.png",
            "https://[::1/a",
            "",
        ),
        *(None, 7, ["https://cdn.example/a.png"]),
    ],
)
def test_an_image_is_shown_only_from_a_complete_https_url(url: Any) -> None:
    body = review_body([_record(path=None, url=url)], **IDS)

    assert "![" not in body
    assert "| [Image 1](/imagen/picture?" in body
    assert "tracker" not in body


@pytest.mark.parametrize(
    "url", ["https://cdn.example:8443/a.png", "http://127.0.0.1:8765/a.png", "http://localhost/a.png"]
)
def test_urls_of_the_api_and_of_a_sandbox_are_shown(url: str) -> None:
    assert f"[![Image 1]({url})](" in review_body([_record(path=None, url=url)], **IDS)


@pytest.mark.parametrize(
    "prompt", ["a | b\n| c", "![x](http://evil)", "[click](javascript:x)", "<img src=x>", "`x` **y**", "# x\n---"]
)
def test_a_prompt_cannot_add_markup_or_cells(prompt: str) -> None:
    plain, hostile = (review_body([_record(prompt=text)], **IDS) for text in ("plain", prompt))

    assert len(hostile.splitlines()) == len(plain.splitlines())
    without_escapes = re.sub(r"\\[!-/:-@\[-`{-~]", "", hostile)
    kept = re.sub(r"\\[!-/:-@\[-`{-~]", "", plain)
    for mark in "|[]()!<>`*#":
        assert without_escapes.count(mark) == kept.count(mark), mark


def test_a_limited_number_is_shown_and_the_rest_is_linked() -> None:
    body = review_body([_record(n) for n in range(70)], **IDS, columns=6)

    assert body.count("![Image") == 60
    assert "/imagen/run?dag_id=d&run_id=r" in body


def test_an_empty_list_is_reported() -> None:
    assert review_body([], **IDS) == "There are no images to review."


def test_the_choice_is_returned_as_records_in_their_original_order() -> None:
    images = [_record(n) for n in range(4)]

    assert pick_images(images, ["4", "2", "2"]) == [images[1], images[3]]
    assert pick_images(images, []) == []


@pytest.mark.parametrize(
    "option", ["0", "5", "-1", "Approve", "1.0", "", "１", "٣", "0_1", "01", "+1", " 1", "9" * 5000]
)
def test_a_number_without_an_image_is_rejected(option: str) -> None:
    with pytest.raises(ValueError, match="numbered 1 to 4"):
        pick_images([_record(n) for n in range(4)], [option])


def test_choices_may_be_integers() -> None:
    images = [_record(n) for n in range(4)]

    assert pick_images(images, [1, 3]) == [images[0], images[2]]


@pytest.mark.parametrize("chosen", [None, "12", {"1": "2"}])
def test_a_choice_that_is_not_a_list_is_rejected(chosen: Any) -> None:
    with pytest.raises(ValueError, match="chosen_options"):
        pick_images([_record(n) for n in range(12)], chosen)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([[_record(0)], [_record(1)]], "of one task instance"),
        ([{"manifest": "/m/metadata.jsonl", "count": 80}], "of one task instance"),
        ([None], "of one task instance"),
        (None, "images is a NoneType"),
        ("images", "images is a str"),
        ({"prompt_index": 0}, "images is a dict"),
    ],
)
def test_anything_but_the_records_of_one_task_instance_is_rejected(images: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        review_body(images, **IDS)


def test_a_choice_from_a_manifest_needs_the_task() -> None:
    with pytest.raises(ValueError, match="task_id=None: required, because images points to a manifest"):
        pick_images({"manifest": "/pictures/metadata.jsonl", "count": 80}, ["1"])


def test_images_with_a_missing_manifest_are_an_error(tmp_path: Path) -> None:
    images = {"manifest": str(tmp_path / "metadata.jsonl"), "count": 80}

    with pytest.raises(StorageError, match=r"metadata\.jsonl lists none of the 80 images of 'paint'"):
        review_body(images, **IDS)


@pytest.mark.usefixtures("imagen_connection")
def test_the_text_and_the_choice_work_for_few_images_and_for_many(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    """With many images, XCom only points to their manifest; the current DAG and run are the defaults."""
    from airflow.sdk import DAG, task

    with DAG("reviewed", schedule=None) as dag:

        @task
        def look(images: Any, task_id: str) -> str:
            return review_body(images, task_id=task_id)

        @task
        def choose(images: Any, task_id: str) -> list[dict[str, Any]]:
            return pick_images(images, ["2"], task_id=task_id)

        @task
        def names(images: Any, task_id: str) -> list[str]:
            return [record["prompt"].partition(":")[0] for record in read_images(images, task_id=task_id)]

        for name, count in (("few", 2), ("many", 80)):
            paint = ImagenGenerateOperator(
                task_id=name,
                prompt=[f"{name} {n}: {'long ' * 60}" for n in range(count)],
                output_path=str(tmp_path),
                concurrency=16,
            )
            look.override(task_id=f"look_{name}")(paint.output["images"], name)
            choose.override(task_id=f"choose_{name}")(paint.output["images"], name)
            names.override(task_id=f"names_{name}")(paint.output["images"], name)
    run = run_dag(dag)

    assert str(run.state) == "success"
    for name, count, shown in (("few", 2, 2), ("many", 80, 60)):
        text = run.get_task_instance(f"look_{name}").xcom_pull(task_ids=f"look_{name}")
        (chosen,) = run.get_task_instance(f"choose_{name}").xcom_pull(task_ids=f"choose_{name}")
        assert text.count("![Image") == shown
        assert f"dag_id=reviewed&run_id={run.run_id[:6]}" in text
        assert chosen["prompt"].startswith(f"{name} 1:")
        listed = run.get_task_instance(f"names_{name}").xcom_pull(task_ids=f"names_{name}")
        assert listed == [f"{name} {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        (
            {"made": 12, "usd_spent": 0.48, "beyond_limit": 188},
            "The other 188 images would cost at most about $7.52: the 12 so far cost $0.48, on average $0.04 each.",
        ),
        (
            {"made": 2, "usd_spent": 0.04, "usd_saved": 0.04, "beyond_limit": 1},
            "The other 1 image would cost at most about $0.04: the 2 so far cost $0.08, on average $0.04 each.",
        ),
        ({"made": 0, "usd_spent": 0.0, "beyond_limit": 5}, "What the other 5 images would cost is not known."),
        ({"made": 5, "usd_spent": 0.0, "beyond_limit": 5}, "What the other 5 images would cost is not known."),
        ({"made": 5, "usd_spent": 0.2, "beyond_limit": 0}, "No images are left to generate."),
    ],
)
def test_the_rest_is_quoted_at_the_average_real_cost(summary: dict[str, Any], sentence: str) -> None:
    assert quote_rest(summary).replace("\\", "").removesuffix(WITH_REUSE) == sentence


@pytest.mark.parametrize("summary", [None, [], {"made": 5}, "summary"])
def test_only_a_summary_is_quoted(summary: Any) -> None:
    with pytest.raises(ValueError, match="the XCom 'summary' of a task instance is allowed"):
        quote_rest(summary)


def test_a_reused_image_is_shown_as_reused() -> None:
    body = review_body([_record(usd=0.0, reused_from="/pictures/old.png")], **IDS)
    assert "m · seed 7 · reused |" in body
    once = [_record(usd=0.0, reused_from="/pictures/old.png", usd_saved=0.042) for _ in range(2)]
    body = review_body([*once, _record(2)], **IDS).replace("\\", "")
    assert "seed 7 · reused, once $0.042 |" in body
    assert body.splitlines()[-1] == "3 images, $0.025 (2 reused, once $0.084)."


def _answer(*verdicts: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return what a human-in-the-loop task returns after a review."""
    return {"chosen_options": ["Send the review"], "params_input": {"verdicts": list(verdicts)}, **values}


def _verdict(number: int, choice: str, **values: Any) -> dict[str, Any]:
    return {"prompt_index": 0, "image_index": number, "choice": choice, "sha256": "ab" * 32, **values}


def test_an_answer_becomes_typed_values_in_the_order_of_the_images() -> None:
    answer = _answer(
        _verdict(3, "reject", reasons=["Text"], comment="Blurred."),
        _verdict(1, "favourite"),
        _verdict(0, "new_prompt", prompt="prompt 0, at night"),
        responded_by_user={"id": "1", "name": "ann"},
    )

    review = read_review(answer, [_record(n) for n in range(5)])

    assert review.reviewer == "ann"
    assert [(each.image["image_index"], each.choice) for each in review.images] == [
        (0, "new_prompt"),
        (1, "favourite"),
        (3, "reject"),
    ]
    assert review.images[0].new_prompt == "prompt 0, at night"
    assert (review.images[2].reasons, review.images[2].comment) == (("Text",), "Blurred.")
    assert [image["image_index"] for image in review.favourites] == [1]
    assert [item["prompt"] for item in review.again] == ["prompt 0, at night"]


def test_an_image_is_made_again_with_everything_that_was_requested_for_it() -> None:
    requested = {
        "model": "retired/model",
        "seed": 7,
        "aspect_ratio": "3:4",
        "num_images": 4,
        "parameters": {"negative_prompt": "fog", "n": 4},
        "output_path": "/pictures",
        "concurrency": 2,
    }
    record = _record(
        0,
        model="fallback/model",
        arguments=json.dumps(requested),
        name="harbour",
        metadata={"page": "3", "note": None},
    )
    answer = _answer(_verdict(0, "new_seed"))

    (item,) = read_review(answer, [record]).again

    seed = item.pop("seed")
    assert item == {
        "prompt": "prompt 0",
        "name": "harbour",
        "metadata": {"page": "3"},
        "model": "fallback/model",
        "aspect_ratio": "3:4",
        "negative_prompt": "fog",
    }
    assert 1 <= seed < 2**31
    assert seed != 7
    assert read_review(answer, [record]).again[0]["seed"] == seed
    (changed,) = read_review(_answer(_verdict(0, "new_prompt", prompt="fog")), [record]).again
    assert (changed["seed"], changed["prompt"]) == (7, "fog")


@pytest.mark.parametrize("arguments", ["{}", '{"model": "m"}', '{"parameters": 3}', '{"output_path": null}'])
def test_no_seed_is_added_where_none_was_requested(arguments: str) -> None:
    (item,) = read_review(_answer(_verdict(0, "new_seed")), [_record(0, arguments=arguments)]).again

    assert item == {"prompt": "prompt 0", "model": "m"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        *(
            (unreadable, "image 0 of prompt 0: its arguments were not recorded; set the API fields with again_with")
            for unreadable in (None, "", "null", "[]", "{", '{"a":' * 5000)
        ),
        ('{"parameters": {"mask": null}}', "image 0 of prompt 0: mask was not recorded; set it yourself, as in "),
        (
            '{"input_images": null}',
            "input_images was not recorded; set it yourself, as in again_with(input_",
        ),
    ],
)
def test_no_image_is_made_again_with_less_than_was_requested(arguments: str | None, problem: str) -> None:
    review = read_review(_answer(_verdict(0, "new_seed")), [_record(0, arguments=arguments)])

    with pytest.raises(ValueError, match=re.escape(problem)):
        _ = review.again
    with pytest.raises(ValueError, match=re.escape(problem)):
        _ = review.images[0].prompt_item


@pytest.mark.parametrize(
    ("arguments", "fields", "item"),
    [
        ('{"parameters": {"mask": null, "n": 2}}', {"mask": "s3://a/b.png"}, {"mask": "s3://a/b.png"}),
        ('{"parameters": {"mask": null}, "aspect_ratio": "1:1"}', {"mask": None}, {"aspect_ratio": "1:1"}),
        ('{"seed": 3}', {"seed": 4}, {"seed": 4}),
        (None, {"aspect_ratio": None}, {}),
        ("{}", {"model": "other", "name": "x"}, {"model": "other", "name": "x"}),
    ],
)
def test_what_was_not_recorded_can_be_set(arguments: str | None, fields: dict[str, Any], item: dict[str, Any]) -> None:
    review = read_review(_answer(_verdict(0, "new_seed")), [_record(0, arguments=arguments)])

    assert review.again_with(**fields) == [{"prompt": "prompt 0", "model": "m", **item}]
    assert review.images[0].prompt_item_with(**fields) == review.again_with(**fields)[0]


def test_an_image_from_a_signed_url_is_made_again_by_the_same_request_or_not_at_all(
    run_dag: Callable[..., Any], imagen_connection: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, task

    model, field = "bytedance/seedream-4-5", "image_urls"
    signed = {field: ["https://bucket.example/reference.png?signature=abc"]}
    answer = _answer({"prompt_index": 0, "image_index": 0, "choice": "new_prompt", "prompt": "a fox"})
    with DAG("made_again", schedule=None) as dag:
        paint = ImagenGenerateOperator(
            task_id="paint", prompt="a fox", model=model, parameters=signed, output_path=str(tmp_path)
        )

        @task
        def again(images: Any) -> Any:
            review = read_review(answer, images, task_id="paint")
            with pytest.raises(ValueError, match=f"{field} was not recorded"):
                _ = review.again
            return review.again_with(**signed)

        ImagenGenerateOperator(task_id="repeat", prompt=again(paint.output["images"]), output_path=str(tmp_path))

    assert str(run_dag(dag).state) == "success"
    first, second = (request.json for request in sandbox.seen("/v1/images/generations"))
    assert first == second
    assert first[field] == signed[field]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "answer is a NoneType: the return value of a human-in-the-loop task is allowed"),
        ({"chosen_options": ["1"]}, "verdicts: Expected `array`, got `null`"),
        (_answer({"choice": "favourite"}), "missing required field `prompt_index` - at `$[0]`"),
        (_answer(_verdict(0, "burn it")), "Invalid enum value 'burn it' - at `$[0].choice`"),
        (_answer(_verdict(0, "favourite", colour="red")), "contains unknown field `colour` - at `$[0]`"),
        (_answer(_verdict(0, "reject", comment="a" * 2001)), "`str` of length <= 2000 - at `$[0].comment`"),
        (_answer(_verdict(0, "reject", reasons=["a" * 61])), "`str` of length <= 60 - at `$[0].reasons[0]`"),
        (_answer(_verdict(0, "reject", reasons=["a"] * 21)), "`array` of length <= 20 - at `$[0].reasons`"),
        (_answer(_verdict(0, "new_prompt", prompt="a" * 10_001)), "of length <= 10000 - at `$[0].prompt`"),
        (_answer(_verdict(0, "new_prompt")), "prompt=None for image 0 of prompt 0: 'new_prompt' requires a prompt"),
        (_answer(_verdict(0, "new_prompt", prompt=" ")), "prompt=' ' for image 0 of prompt 0"),
        (_answer(_verdict(0, "favourite"), _verdict(0, "reject")), "two verdicts on image 0 of prompt 0"),
        (_answer(responded_by_user={"id": "1", "name": "ann"}), "verdicts is empty: the form in Airflow was sent"),
        (_answer(_verdict(9, "favourite")), "contains image 9 of prompt 0: images has no such image"),
        (_answer(_verdict(0, "favourite", sha256="cd" * 32)), "is not the one that was reviewed; clear the review"),
    ],
)
def test_a_wrong_answer_is_reported(answer: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        read_review(answer, [_record()])


def test_nobody_in_time_means_no_images() -> None:
    assert read_review(_answer(responded_by_user=None), [_record()]) == Review(images=[], reviewer=None)


@pytest.mark.parametrize(
    ("reasons", "problem"),
    [
        ("Text", "reasons='Text': a list of at most 20 texts is allowed"),
        (["a"] * 21, "a list of at most 20 texts is allowed"),
        ([""], "reasons contains '': 1 to 60 characters are allowed"),
        (["a" * 61], "1 to 60 characters are allowed"),
    ],
)
def test_reasons_that_do_not_fit_are_reported(reasons: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        review_form("paint", reasons=reasons)


def test_the_form_on_the_page_offers_its_reasons() -> None:
    names: dict[str, Any] = {}
    exec(find_block("review form").text, names)
    form = names["review"].params.get_param("verdicts").serialize()
    assert all(reason in json.dumps(form) for reason in ("Logo", "Wrong colours", "Looks generated"))


def test_the_answer_is_validated_by_airflow_too() -> None:
    param = review_form("paint")["params"]["verdicts"]

    assert param.resolve() == []
    assert param.resolve([_verdict(0, "favourite")])
    for wrong in ([{"choice": "favourite"}], [_verdict(0, "reject", comment="a" * 2001)], "favourite"):
        with pytest.raises(ParamValidationError):
            param.resolve(wrong)
