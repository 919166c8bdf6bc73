"""Images of other runs are reused in every attempt, and what this task has paid for is still never paid for twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Painting

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

KEPT_BY = pytest.mark.parametrize(
    "old_airflow", [pytest.param(False, id="state store"), pytest.param(True, id="folder")]
)
PROMPTS = ["one", "one", "two", "three", "three"]


@pytest.fixture
def second_run(paint: Callable[..., Painting], old_airflow: bool) -> Painting:
    """Return a task that requests five images, of which another run in the same folder has paid for two."""
    earlier = paint(dag="earlier", prompt=["one", "two"])
    earlier.finish()
    assert earlier.last["state"] == "success"
    return paint(prompt=PROMPTS, reuse="unchanged", old_airflow=old_airflow)


@KEPT_BY
@pytest.mark.parametrize(
    "moment", [("record intent", 2), ("record response", 2), ("rename .png", 1), ("rename .png", 2), ("half", 2)]
)
def test_a_killed_task_reuses_the_same_images_and_pays_for_nothing_twice(
    second_run: Painting, moment: tuple[str, int]
) -> None:
    second_run.die("after", *moment)
    second_run.finish()

    assert second_run.last["state"] == "success"
    assert second_run.bought() == Counter(PROMPTS)
    assert (second_run.summary["reused"], second_run.summary["usd_lost"]) == (2, 0)
    assert len({image["client_request_id"] for image in second_run.images}) == 5


@KEPT_BY
def test_originals_that_disappear_between_attempts_are_paid_for_once(second_run: Painting) -> None:
    originals = second_run.pictures()
    second_run.die("after", "record response", 1)
    for path in originals:
        path.unlink()
    second_run.finish()

    assert second_run.last["state"] == "success"
    assert second_run.bought() == Counter(["one", "two", *PROMPTS])
    assert [image["prompt"] for image in second_run.images] == PROMPTS
    assert (second_run.summary["reused"], second_run.summary["adopted"]) == (0, 1)


@KEPT_BY
def test_an_image_that_this_task_paid_for_never_stands_in_for_an_equal_prompt(
    second_run: Painting, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="three"))
    second_run.finish()
    assert second_run.last["state"] == "failed"
    for image in second_run.images:
        if image["reused_from"] is not None:
            Path(image["reused_from"]).unlink()
            Path(image["path"]).unlink()
    second_run.clear()
    second_run.finish()

    assert second_run.last["state"] == "success"
    assert second_run.bought() == Counter(["one", "two", *PROMPTS])
    assert len({image["client_request_id"] for image in second_run.images}) == 5


@KEPT_BY
def test_clearing_a_successful_task_reuses_its_images(second_run: Painting) -> None:
    second_run.finish()
    first, lines = second_run.images, second_run.manifest()
    second_run.clear()
    second_run.finish()

    assert second_run.last["state"] == "success"
    assert second_run.bought() == Counter(PROMPTS)
    assert [image["sha256"] for image in second_run.images] == [image["sha256"] for image in first]
    assert [image["path"] for image in second_run.images] == [image["path"] for image in first]
    assert (second_run.summary["reused"], second_run.summary["adopted"]) == (2, 3)
    assert second_run.summary["usd_spent"] == pytest.approx(3 * 0.042)
    assert [line | {"reused_at": None} for line in second_run.manifest()] == [
        line | {"reused_at": None} for line in lines
    ]


@KEPT_BY
def test_a_cleared_task_whose_prompts_have_moved_pays_only_for_new_ones(
    paint: Callable[..., Painting], old_airflow: bool
) -> None:
    """Every image would get the name of another one that is still to be reused."""
    painting = paint(prompt=["one", "two", "three"], reuse="unchanged", old_airflow=old_airflow)
    painting.finish()
    first = {image["prompt"]: image["sha256"] for image in painting.images}
    painting.clear()
    painting.arguments["prompt"] = ["zero", "three", "one", "two"]
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(["zero", "one", "two", "three"])
    assert [image["prompt"] for image in painting.images] == ["zero", "three", "one", "two"]
    assert {image["prompt"]: image["sha256"] for image in painting.images[1:]} == first
    assert len({image["path"] for image in painting.images}) == len(painting.pictures()) == 4
    assert [(line["prompt"], line["prompt_index"]) for line in painting.manifest()] == [
        ("zero", 0), ("three", 1), ("one", 2), ("two", 3)
    ]  # fmt: skip
    assert sum(line["usd"] for line in painting.manifest()) == pytest.approx(4 * 0.042)
