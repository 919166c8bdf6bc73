"""Changes that an author makes between two attempts waste no paid image and hide no existing one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

PROMPTS = ["one", "two", "three"]

KEPT_BY = pytest.mark.parametrize(
    "old_airflow", [pytest.param(False, id="state store"), pytest.param(True, id="folder")]
)


@KEPT_BY
def test_a_changed_output_path_pays_for_nothing_twice_and_lists_the_images_there(
    paint: Callable[..., Any], tmp_path: Path, old_airflow: bool
) -> None:
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow, thumbnail_pixels=32)
    painting.die("after", "record write_committed", 2)
    moved = tmp_path / "elsewhere" / "moved"
    painting.arguments["output_path"] = str(moved)
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(PROMPTS)
    assert painting.summary["usd_lost"] == 0
    assert [image["prompt"] for image in painting.images] == PROMPTS
    assert {Path(image["path"]) for image in painting.images} == set(moved.glob("*.png"))
    lines = [json.loads(line) for line in (moved / "metadata.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == PROMPTS
    assert all((moved / line["file_name"]).is_file() and (moved / line["thumbnail"]).is_file() for line in lines)
    assert painting.last["journal"] == []
    assert not list(tmp_path.rglob("journal/*/*"))


@KEPT_BY
@pytest.mark.parametrize(
    "rejected",
    [
        pytest.param({"max_usd": 0.01, "prompt": [*PROMPTS, "four"]}, id="a cap that is too low"),
        pytest.param({"aspect_ratio": "1:7"}, id="an invalid argument"),
        pytest.param({"concurrency": "many"}, id="an invalid argument of ours"),
    ],
)
def test_a_rejected_attempt_lists_the_images_of_previous_ones(
    paint: Callable[..., Any], rejected: dict[str, Any], old_airflow: bool
) -> None:
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    painting.die("before", "message SetXCom images")
    painting.arguments |= rejected
    painting.finish()

    assert painting.last["state"] in ("failed", "up_for_retry")
    assert [image["prompt"] for image in painting.images] == PROMPTS
    assert painting.summary["made"] == 3
    painting.assert_tidy()
    assert painting.bought() == Counter(PROMPTS)


def test_an_attempt_without_a_usable_folder_lists_the_images_of_previous_ones(
    paint: Callable[..., Any], tmp_path: Path
) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "message SetXCom images")
    (tmp_path / "a file").write_text("in the way")
    painting.arguments["output_path"] = str(tmp_path / "a file")
    painting.finish()

    assert painting.last["error"]["type"] == "StorageError"
    assert [image["prompt"] for image in painting.images] == PROMPTS
    assert all(Path(image["path"]).is_file() for image in painting.images)
    assert painting.summary["usd_spent"] == pytest.approx(sum(float(painting.charge(p).usd) for p in PROMPTS))


def test_a_rejected_attempt_does_not_list_deleted_files(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "message SetXCom images")
    painting.pictures()[1].unlink()
    painting.arguments["aspect_ratio"] = "1:7"
    painting.finish()

    assert [bool(image["path"]) for image in painting.images] == [True, False, True]
    assert [line["prompt"] for line in painting.manifest()] == ["one", "three"]


def test_the_unstored_image_of_a_removed_prompt_is_stored_and_listed(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("after", "record response", 3)
    painting.arguments["prompt"] = ["one"]
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(PROMPTS)
    assert [image["prompt"] for image in painting.images] == PROMPTS
    assert len(painting.last["xcoms"]["return_value"]) == 1
    assert (painting.summary["made"], painting.summary["superseded"]) == (1, 2)
    painting.assert_tidy()
    assert {Path(image["path"]) for image in painting.images} == set(painting.pictures())
    painting.assert_forgotten()
