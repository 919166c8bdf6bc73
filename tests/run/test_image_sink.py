"""The names a sink gives to images, avoiding those of previous attempts."""

from __future__ import annotations

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.image_record import ImageRecord, ResponseImage, StoredFile
from airflow_provider_imagen.journal.records import RequestState, Response, Target
from airflow_provider_imagen.run.image_sink import ImageSink
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.results import ReceivedResponse
from airflow_provider_imagen.run.reuse import EarlierRequests
from airflow_provider_imagen.storage.manifest import manifest_line, read_manifest, write_manifest
from airflow_provider_imagen.storage.provenance import read_provenance
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

ONE_BY_ONE = "dall-e-3"
"""A model that makes one picture per request."""


def plan_of(images: int, model: str = ONE_BY_ONE):
    return make_plan(prompt="a", arguments={"model": model, "num_images": images}, can_store=True)


TI_KEY = TaskInstanceKey(dag_id="dag", task_id="task", run_id="run")


def sink_of(plan, folder: Path, requests, **options) -> ImageSink:
    options = {"filename": "{identity}-{index}-{image}"} | options
    return ImageSink(folder=folder, open_path=Path, plan=plan, requests=requests, ti_key=TI_KEY, **options)


def png(colour: str = "teal", **options) -> bytes:
    target = BytesIO()
    Image.new("RGB", (8, 8), colour).save(target, format="PNG", **options)
    return target.getvalue()


def keep(
    sink: ImageSink, plan, image_index: int, *, item=None, data: bytes | None = None, target=None, **facts
) -> StoredFile:
    image = ResponseImage(url="https://cdn.test/a.png", **facts)
    response = Response(
        key="a#1", client_request_id="id", images=(image,), usd=Decimal("0.04"), model=ONE_BY_ONE, at=0.0
    )
    received = ReceivedResponse("a#1", 0, item or plan.items[0], target or target_of(image_index), response)
    return sink.save(data or png(), received, 0)


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
    for field in ("thumbnail", "original"):
        assert sink.keep(stored_at(now / "a.png", "a.png", **{field: "../private/a.png"})) is None
    assert sink_of(plan, now, {}).keep(stored_at(private / "a.png", "a.png")) is not None


@pytest.mark.parametrize("name", ["../private/a.png", "../now/../private/a.png", "sub/../../private/a.png"])
@pytest.mark.parametrize("thumbnail", [None, "previews/a.webp"])
def test_a_file_name_that_leaves_the_folder_is_not_kept_even_from_a_trusted_journal(tmp_path, name, thumbnail):
    now, private = tmp_path / "now", tmp_path / "private"
    for folder in (now / "sub", private):
        folder.mkdir(parents=True)
    (private / "a.png").write_bytes(png())
    sink = sink_of(plan_of(1), now, {})
    for path in (now / name, private / "a.png"):
        stored = stored_at(path, name, thumbnail=thumbnail)
        assert not sink.is_stored(stored)
        assert sink.keep(stored) is None


def test_a_symlink_in_place_of_an_image_is_not_kept(tmp_path):
    private = tmp_path / "private.png"
    private.write_bytes(png())
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "a.png"
    link.symlink_to(private)
    sink = sink_of(plan_of(1), tmp_path / "out", {})
    assert sink.keep(stored_at(link, "a.png")) is None
    assert sink.find_missing([stored_at(link, "a.png")]) == [stored_at(link, "a.png")]


def test_an_image_that_was_damaged_is_not_kept_although_its_size_is_right(tmp_path):
    sink = sink_of(plan_of(1), tmp_path, {})
    stored = keep(sink, plan_of(1), 0)
    assert sink.is_stored(stored)
    path = tmp_path / stored.file_name
    path.write_bytes(path.read_bytes()[::-1])
    assert not sink.is_stored(stored)
    assert sink.keep(stored) is None


@pytest.mark.parametrize(("filename", "is_refused"), [("sub/{index}-{image}", True), ("{index}-{image}", False)])
def test_a_planned_subfolder_that_is_a_symlink_is_refused_before_anything_is_sent(tmp_path, filename, is_refused):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    if is_refused:
        with pytest.raises(StorageError, match="symbolic link"):
            sink_of(plan_of(1), tmp_path / "out", {}, filename=filename)
    else:
        sink_of(plan_of(1), tmp_path / "out", {}, filename=filename)


@pytest.mark.parametrize(("filename", "name"), [("{prompt}", "a-{key}.png"), ("{index}-{image}-old", "000-0-old.png")])
def test_an_image_that_is_no_longer_requested_never_takes_a_planned_name(tmp_path, filename, name):
    """It gets its planned name, unless a requested image has the same one; here the first pattern gives it to both."""
    plan = plan_of(1)
    sink = sink_of(plan, tmp_path, {}, filename=filename)
    superseded = replace(plan.items[0], index=0 if filename == "{prompt}" else 7, is_superseded=True)
    old = keep(sink, plan, 0, item=superseded)
    new = keep(sink, plan, 0)
    assert old.file_name == (name.format(key="a#1") if filename == "{prompt}" else "007-0-old.png")
    assert new.file_name == ("a.png" if filename == "{prompt}" else name)


def test_a_name_that_is_taken_by_somebody_else_is_left_alone_and_reported_once(tmp_path, caplog):
    plan = plan_of(2)
    sink = sink_of(plan, tmp_path, {}, filename="{index}-{image}")
    for name in ("000-0.png", "000-1.png"):
        (tmp_path / name).write_bytes(b"mine")
    with caplog.at_level(logging.WARNING):
        stored = [keep(sink, plan, image_index) for image_index in (0, 1)]
    assert [each.file_name for each in stored] == [f"000-{number}-{TI_KEY.identity}.png" for number in (0, 1)]
    assert {(tmp_path / f"000-{number}.png").read_bytes() for number in (0, 1)} == {b"mine"}
    assert len(caplog.messages) == 1


def test_an_image_of_this_task_instance_is_replaced_by_its_next_version(tmp_path):
    plan = plan_of(1)
    stored = keep(sink_of(plan, tmp_path, {}), plan, 0)
    request = {next(iter(plan.requests)).key: RequestState(files={0: stored})}
    again = keep(sink_of(plan, tmp_path, request), plan, 0, data=png("red"))
    assert again.file_name == stored.file_name
    assert again.sha256 != stored.sha256


def test_a_copy_from_the_previous_folder_gets_a_preview_of_its_own(tmp_path):
    plan = plan_of(1)
    before = sink_of(plan, tmp_path / "before", {}, thumbnail_pixels=4)
    stored = keep(before, plan, 0)
    copy = sink_of(plan, tmp_path / "now", {}, thumbnail_pixels=4).keep(stored)
    assert (tmp_path / "now" / copy.thumbnail).is_file()
    assert replace(copy, path=stored.path) == stored
    assert sink_of(plan, tmp_path / "later", {}).keep(stored).thumbnail is None
    assert before.keep(stored) == stored


def test_a_copy_whose_preview_fails_is_kept_without_one(tmp_path):
    plan = plan_of(1)
    stored = keep(sink_of(plan, tmp_path / "before", {}), plan, 0)
    (tmp_path / "now").mkdir()
    now = sink_of(plan, tmp_path / "now", {}, thumbnail_pixels=4)
    (tmp_path / "now" / ".imagen").touch()
    copy = now.keep(stored)
    assert (copy.path, copy.thumbnail) == (str(tmp_path / "now" / stored.file_name), None)


def signed() -> bytes:
    """Return an image with something shaped like content credentials."""
    chunks = PngInfo()
    chunks.add(b"caBX", b"\0\0\0\x08jumb")
    return png(pnginfo=chunks)


def test_a_copy_of_a_converted_image_brings_its_original_along(tmp_path, caplog):
    plan = plan_of(1)
    with caplog.at_level(logging.INFO):
        stored = keep(sink_of(plan, tmp_path / "before", {}, image_format="jpeg"), plan, 0, data=signed())
    assert f"the file as delivered is kept, too: {stored.original}" in caplog.text
    copy = sink_of(plan, tmp_path / "now", {}).keep(stored)
    assert (tmp_path / "now" / copy.original).read_bytes() == signed()
    assert replace(copy, path=stored.path) == stored


@pytest.mark.parametrize("contents", [None, b"", b"not an image", png()])
def test_a_copy_whose_original_is_gone_or_damaged_is_kept_and_reported(tmp_path, caplog, contents):
    plan = plan_of(1)
    stored = keep(sink_of(plan, tmp_path / "before", {}, image_format="jpeg"), plan, 0, data=signed())
    original = tmp_path / "before" / stored.original
    original.unlink() if contents is None else original.write_bytes(contents)
    copy = sink_of(plan, tmp_path / "now", {}).keep(stored)
    assert (copy.file_name, copy.original) == (stored.file_name, None)
    assert "with C2PA content credentials, is lost" in caplog.text


@pytest.mark.parametrize("provenance", [True, {"digital_source_type": "compositeSynthetic"}])
@pytest.mark.parametrize("has_input_images", [False, True])
def test_an_image_made_from_others_is_marked_as_such_unless_the_author_says_otherwise(
    tmp_path, has_input_images, provenance
):
    plan = plan_of(1)
    target = replace(target_of(0), has_input_images=has_input_images)
    stored = keep(sink_of(plan, tmp_path, {}, provenance=provenance), plan, 0, target=target)
    term = "compositeWithTrainedAlgorithmicMedia" if has_input_images else "trainedAlgorithmicMedia"
    term = term if provenance is True else "compositeSynthetic"
    found = read_provenance((tmp_path / stored.file_name).read_bytes())["digital_source_type"]
    assert found == f"http://cv.iptc.org/newscodes/digitalsourcetype/{term}"


def test_the_alternative_text_of_an_item_is_embedded(tmp_path):
    plan = make_plan(
        prompt={"prompt": "a fox", "alt_text": "A fox in snow"}, arguments={"model": ONE_BY_ONE}, can_store=True
    )
    stored = keep(sink_of(plan, tmp_path, {}), plan, 0)
    assert read_provenance((tmp_path / stored.file_name).read_bytes())["alt_text"] == "A fox in snow"


def test_a_name_says_what_was_requested(tmp_path):
    plan = make_plan(
        prompt={"prompt": "a fox", "name": "fox"},
        arguments={"model": "imagen-4.0-generate-001", "seed": 7},
        can_store=True,
    )
    sink = sink_of(plan, tmp_path, {}, filename="{model}-{name}-{prompt}-{seed}")
    assert keep(sink, plan, 0).file_name == "imagen-4.0-generate-001-fox-a-fox-7.png"


def test_a_file_says_how_it_was_generated(tmp_path):
    plan = make_plan(
        prompt="a fox",
        arguments={"model": "imagen-4.0-generate-001", "seed": 7, "aspect_ratio": "16:9", "enhance_prompt": None},
        can_store=True,
    )

    def story(provenance, **facts):
        stored = keep(sink_of(plan, tmp_path, {}, provenance=provenance), plan, 0, **facts)
        return read_provenance((tmp_path / stored.file_name).read_bytes())

    embedded = story(True, prompt="a red fox", seed=8)
    assert (embedded["prompt"], embedded["enhanced_prompt"], embedded["seed"]) == ("a fox", "a red fox", 8)
    assert embedded["parameters"] == {"aspect_ratio": "16:9"}
    assert story({"shop": 12})["parameters"] == {"aspect_ratio": "16:9", "shop": 12}
    assert "enhanced_prompt" not in story(True, prompt="a fox")
    assert story(False) == {}


def test_a_new_image_gets_the_first_version_of_its_name_that_no_kept_image_has(tmp_path):
    plan = plan_of(1)
    kept = [StoredFile(f"/out/{name}", name, "0" * 64, 1, "image/png", 8, 8) for name in ("A.png", "a-v2.png")]
    sink = sink_of(plan, tmp_path, {"removed": RequestState(files=dict(enumerate(kept)))}, filename="{prompt}")
    assert keep(sink, plan, 0).file_name == "a-v3.png"


def test_tasks_that_reuse_images_in_one_folder_at_the_same_time_do_not_disturb_each_other(tmp_path):
    prompts = [{"prompt": f"fox {number}", "name": f"fox{number}"} for number in range(20)]
    plan = make_plan(prompt=prompts, arguments={"model": ONE_BY_ONE}, can_store=True)
    source, target = tmp_path / "source", tmp_path / "target"
    write_listed(source, plan)
    barrier = threading.Barrier(4)

    def reuse_all(number: int) -> None:
        ti_key = TaskInstanceKey(dag_id="dag", task_id="task", run_id=f"run {number}")
        earlier = EarlierRequests(plan, [target, source])
        sink = ImageSink(
            folder=target, open_path=Path, plan=plan, requests={}, ti_key=ti_key, filename="{name}", thumbnail_pixels=16
        )
        barrier.wait()
        lines = []
        for planned, item in zip(plan.requests, plan.items, strict=True):
            request = earlier.take(planned)
            received = ReceivedResponse(planned.key, 0, item, planned.target, request.response_to(planned))
            image = sink.reuse(request.images[0], received, 0)
            record = ImageRecord.of(image.file, prompt_index=item.index, image_index=0, reused_from=image.reused_from)
            lines.append(manifest_line(record, image.file, ti_key=ti_key, created_at=datetime.now(UTC)))
        write_manifest(target, ti_key=ti_key, lines=lines)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(reuse_all, range(4)))

    lines = read_manifest(target)
    assert [line["file_name"] for line in sorted(lines, key=lambda line: line["prompt_index"])] == [
        f"fox{number}.png" for number in range(20)
    ]
    for line in lines:
        data = (target / line["file_name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == line["sha256"]
        assert read_provenance(data)["prompt"] == f"fox {line['prompt_index']}"
    assert len(list(target.glob("*.png"))) == 20


def write_listed(folder: Path, plan) -> None:
    """Write one image for each request of a plan, and the manifest that lists them."""
    folder.mkdir()
    lines = []
    for planned, item in zip(plan.requests, plan.items, strict=True):
        data = png(f"rgb({item.index}, 0, 0)")
        path = folder / f"{item.name}.png"
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        file = StoredFile(str(path), path.name, digest, len(data), "image/png", 8, 8)
        record = ImageRecord.of(file, prompt_index=item.index, image_index=0, client_request_id=f"id {item.index}")
        lines.append(
            manifest_line(
                record,
                file,
                ti_key=TI_KEY,
                created_at=datetime.now(UTC),
                request_fingerprint=planned.fingerprint,
                response_index=0,
            )
        )
    write_manifest(folder, ti_key=TI_KEY, lines=lines)
