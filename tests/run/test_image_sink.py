"""The names a sink gives to images, avoiding those of previous attempts."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from airflow_provider_imagen.image_record import ResponseImage, StoredFile
from airflow_provider_imagen.journal.records import RequestState, Response, Target
from airflow_provider_imagen.run.image_sink import ImageSink
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.results import ReceivedResponse
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

ONE_BY_ONE = "dall-e-3"
"""A model that makes one picture per request."""


def plan_of(images: int, model: str = ONE_BY_ONE):
    return make_plan(prompt="a", arguments={"model": model, "num_images": images}, can_store=True)


def sink_of(plan, folder: Path, requests, **options) -> ImageSink:
    return ImageSink(
        folder=folder,
        open_path=Path,
        plan=plan,
        requests=requests,
        ti_key=TaskInstanceKey(dag_id="dag", task_id="task", run_id="run"),
        filename="{identity}-{index}-{image}",
        **options,
    )


def png() -> bytes:
    target = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(target, format="PNG")
    return target.getvalue()


def keep(sink: ImageSink, plan, image_index: int) -> StoredFile:
    image = ResponseImage(url="https://cdn.test/a.png")
    response = Response(
        key="a#1", client_request_id="id", images=(image,), usd=Decimal("0.04"), model=ONE_BY_ONE, at=0.0
    )
    return sink.save(png(), ReceivedResponse("a#1", 0, plan.items[0], target_of(image_index), response), 0)


def target_of(image_index: int) -> Target:
    return Target(prompt_index=0, image_index=image_index, images=1, prompt_images=3, prompt="a")


@pytest.mark.parametrize(
    ("model", "places"),
    [
        (ONE_BY_ONE, [[0, 3, 6], [1, 4, 7], [2, 5, 8]]),
        ("imagen-4.0-generate-001", [[0, 1, 2, 3, 4, 5, 6]]),
    ],
)
def test_surplus_images_are_numbered_after_all_requested_ones(model, places):
    plan = plan_of(3, model)
    assert [
        [slot.alternatives[0][0].target.index_of(position) for position in range(len(expected))]
        for slot, expected in zip(plan.slots, places, strict=True)
    ] == places


def test_an_image_never_takes_the_name_of_a_surplus_one_from_a_previous_attempt(tmp_path):
    """The first response held one image too many; then the author requests more."""
    plan = plan_of(3)
    extra = target_of(0).index_of(1)
    first_try = sink_of(plan, tmp_path, {})
    stored = [keep(first_try, plan, image_index) for image_index in (0, 1, 2, extra)]
    keys = [unit.key for unit in plan.requests]
    entries = {
        keys[0]: RequestState(files={0: stored[0], 1: stored[3]}),
        keys[1]: RequestState(files={0: stored[1]}),
        keys[2]: RequestState(files={0: stored[2]}),
    }
    more = plan_of(5)
    second_try = sink_of(more, tmp_path, entries)
    new = [keep(second_try, more, image_index) for image_index in (3, 4)]
    assert not {each.file_name for each in new} & {each.file_name for each in stored}
    assert all(second_try.is_stored(each) for each in stored)


def stored_at(path: Path, file_name: str, **changes) -> StoredFile:
    data = path.read_bytes()
    facts = {"bytes": len(data), "mime_type": "image/png", "width": 8, "height": 8, **changes}
    return StoredFile(path=str(path), file_name=file_name, sha256=hashlib.sha256(data).hexdigest(), **facts)


def test_a_journal_in_a_folder_refers_only_to_images_in_that_folder_and_the_current_one(tmp_path):
    """Others may be able to write to the folder, and so to its journal."""
    plan = plan_of(1)
    now, first, private = (tmp_path / name for name in ("now", "first", "private"))
    for folder in (now, first, private):
        folder.mkdir()
        (folder / "a.png").write_bytes(png())
    sink = sink_of(plan, now, {}, stored_folders=[first, now])
    for folder in (now, first):
        kept = sink.keep(stored_at(folder / "a.png", "a.png"))
        assert (kept.path, kept.file_name) == (str(now / "a.png"), "a.png")
    for path, file_name in (
        (private / "a.png", "a.png"),
        (private / "a.png", "../private/a.png"),
        (now / ".." / "private" / "a.png", "../private/a.png"),
        (now / ".." / "private" / "a.png", "a.png"),
    ):
        stored = stored_at(path, file_name)
        assert not sink.is_stored(stored)
        assert sink.keep(stored) is None
    assert sink.keep(stored_at(now / "a.png", "a.png", thumbnail="../private/a.png")) is None
    assert sink_of(plan, now, {}).keep(stored_at(private / "a.png", "a.png")) is not None


def test_a_symlink_in_place_of_an_image_is_not_kept(tmp_path):
    private = tmp_path / "private.png"
    private.write_bytes(png())
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "a.png"
    link.symlink_to(private)
    sink = sink_of(plan_of(1), tmp_path / "out", {})
    assert sink.keep(stored_at(link, "a.png")) is None
    assert sink.find_missing([stored_at(link, "a.png")]) == [stored_at(link, "a.png")]
