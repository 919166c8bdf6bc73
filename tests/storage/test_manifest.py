from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.image_record import ImageRecord, StoredFile
from airflow_provider_imagen.run_report import FailureLine
from airflow_provider_imagen.storage import manifest
from airflow_provider_imagen.storage.atomic_write import read_bytes, write_bytes_atomically
from airflow_provider_imagen.storage.manifest import (
    delete_progress,
    failures_address,
    has_part,
    manifest_address,
    manifest_line,
    progress_address,
    read_failures,
    read_manifest,
    recorded_lines,
    recorded_names,
    write_manifest,
    write_progress,
)
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

from .conftest import picture

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path, memory_folder):
    return tmp_path / "pictures" if request.param == "disk" else memory_folder


def line(ti_key, number, *, image=0, created_at=NOON, **record):
    name = record.pop("file_name", f"{ti_key.run_id}-{ti_key.map_index}-{number}-{image}.png")
    known = {"prompt_index": number, "image_index": image, "sha256": "0" * 64, **record}
    return manifest_line(ImageRecord(**known), file_at(name), ti_key=ti_key, created_at=created_at)


def file_at(name: str) -> StoredFile:
    return StoredFile(path=f"/x/{name}", file_name=name, bytes=1, sha256="ab", mime_type="image/png", width=2, height=3)


def lines_of(folder) -> list[dict]:
    return [json.loads(text) for text in read_bytes(folder / "metadata.jsonl").decode().splitlines()]


def test_a_line_holds_the_record_and_its_task_instance(ti_key):
    record = ImageRecord.of(file_at("a.png"), prompt_index=0, image_index=1, prompt="fox", usd=0.04)
    made = manifest_line(record, file_at("a.png"), ti_key=ti_key, created_at=NOON).to_json()
    assert list(made) == [
        "file_name",
        *record.to_json(),
        *("thumbnail", "original", "original_sha256", "dag_id", "run_id", "task_id", "map_index", "created_at"),
        *("request_fingerprint", "response_index", "reused_at"),
    ]
    assert made["path"] == "/x/a.png"
    assert (made["width"], made["height"], made["usd"], made["seed"]) == (2, 3, 0.04, None)
    assert (made["dag_id"], made["map_index"], made["created_at"]) == ("daily", -1, "2026-11-21T12:00:00+00:00")


def test_images_are_listed_in_prompt_order(folder, ti_key):
    numbers = [(2, 0), (0, 1), (10, 0), (0, 0)]
    address = write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, n, image=i) for n, i in numbers])
    assert address == manifest_address(folder) == str(folder / "metadata.jsonl")
    assert [(one["prompt_index"], one["image_index"]) for one in lines_of(folder)] == sorted(numbers)
    assert read_manifest(folder) == lines_of(folder)


def test_images_of_a_prompt_are_listed_in_their_order_whatever_their_names(folder, ti_key):
    lines = [line(ti_key, 0, image=image, file_name=f"{name}.png") for image, name in enumerate("cba")]
    write_manifest(folder, ti_key=ti_key, lines=lines)
    assert [one["image_index"] for one in lines_of(folder)] == [0, 1, 2]


def test_an_image_is_one_line_whatever_its_prompt_contains(folder, ti_key):
    prompt = "".join(map(chr, (*range(32), 0x85, 0x2028, 0x2029))) + "ä"
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, number, prompt=prompt) for number in range(2)])

    assert [one["prompt"] for one in lines_of(folder)] == [prompt, prompt]
    assert "ä" in read_bytes(folder / "metadata.jsonl").decode()


def test_prompts_without_an_image_are_listed_in_a_separate_file(folder, ti_key):
    failures = [FailureLine(prompt_index=5, error="FilteredError"), FailureLine(prompt_index=1, error="ServerError")]
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)], failures=failures)
    assert [failure.prompt_index for failure in read_failures(folder, ti_key)] == [1, 5]
    assert len(lines_of(folder)) == 1
    assert failures_address(folder, ti_key) == str(folder / ".imagen" / "failures" / f"{ti_key.identity}.jsonl")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0), line(ti_key, 1)])
    assert read_failures(folder, ti_key) == []


def test_a_task_without_failures_leaves_no_failures_file(folder, ti_key):
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)])
    assert read_bytes(folder / ".imagen" / "failures" / f"{ti_key.identity}.jsonl") is None
    assert read_failures(folder, ti_key) == []


def test_an_empty_task_still_leaves_a_manifest(folder, ti_key):
    write_manifest(folder, ti_key=ti_key, lines=[])
    assert lines_of(folder) == []


def test_a_retry_writes_the_same_lines_once(folder, ti_key):
    for _ in range(2):
        write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0), line(ti_key, 1)])
        first = read_bytes(folder / "metadata.jsonl")
    assert len(lines_of(folder)) == 2
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 1), line(ti_key, 0)])
    assert read_bytes(folder / "metadata.jsonl") == first


def test_a_folder_may_have_any_name(folder, ti_key):
    odd = folder / "a [1]* ?{x}#%20ü"
    for number in (0, 1):
        one = replace(ti_key, map_index=number)
        save_image(picture(), folder=odd, stem=f"sub [2]/{number}", thumbnail_pixels=9)
        write_manifest(odd, ti_key=one, lines=[line(one, 0, file_name=f"sub [2]/{number}.png")])
    write_manifest(odd, ti_key=ti_key, lines=[])
    assert [one["file_name"] for one in read_manifest(odd)] == ["sub [2]/0.png", "sub [2]/1.png"]


def test_runs_and_mapped_tasks_can_share_a_folder(folder, ti_key):
    for run in ("b", "a"):
        for map_index in (1, 0):
            one = replace(ti_key, run_id=run, map_index=map_index)
            write_manifest(folder, ti_key=one, lines=[line(one, 0)])
    assert [(one["run_id"], one["map_index"]) for one in lines_of(folder)] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_tasks_that_finish_at_the_same_time_lose_no_lines(folder, ti_key):
    """Thirty mapped instances write concurrently; every line survives, whatever order they finish in."""
    ti_keys = [replace(ti_key, map_index=number) for number in range(30)]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda one: write_manifest(folder, ti_key=one, lines=[line(one, 0), line(one, 1)]), ti_keys))
    assert len(lines_of(folder)) == 60


def test_a_part_that_appears_while_the_manifest_is_written_is_included(folder, ti_key, monkeypatch):
    """Force the race: another task finishes after the parts are listed and before the manifest is written."""
    other = replace(ti_key, run_id="other")
    real, done = manifest.write_bytes_atomically, []

    def write(path, data, **options):
        if path.name == "metadata.jsonl" and not done:
            done.append(True)
            write_manifest(folder, ti_key=other, lines=[line(other, 0)])
        real(path, data, **options)

    monkeypatch.setattr(manifest, "write_bytes_atomically", write)
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)])
    assert done
    assert {one["run_id"] for one in lines_of(folder)} == {ti_key.run_id, "other"}


def test_a_part_that_changes_while_the_manifest_is_written_is_read_again(folder, ti_key, monkeypatch):
    other = replace(ti_key, run_id="other")
    write_manifest(folder, ti_key=other, lines=[line(other, 0)])
    real, done = manifest.write_bytes_atomically, []

    def write(path, data, **options):
        if path.name == "metadata.jsonl" and not done:
            done.append(True)
            write_manifest(folder, ti_key=other, lines=[line(other, 0), line(other, 1)])
        real(path, data, **options)

    monkeypatch.setattr(manifest, "write_bytes_atomically", write)
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)])
    assert done
    assert sorted((one["run_id"], one["prompt_index"]) for one in lines_of(folder)) == sorted(
        [(ti_key.run_id, 0), ("other", 0), ("other", 1)]
    )


def test_other_files_next_to_the_parts_are_ignored(folder, ti_key):
    path = folder / ".imagen" / "parts" / "a.jsonl.part"
    write_bytes_atomically(path, json.dumps(line(ti_key, 7).to_json()).encode(), content_type="application/x-ndjson")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)])
    assert [one["prompt_index"] for one in lines_of(folder)] == [0]
    assert [one.prompt_index for one in recorded_lines(folder, ti_key)] == [0]


def test_concurrent_processes_lose_no_lines_and_readers_see_complete_files(tmp_path):
    program = textwrap.dedent(
        f"""
        import sys
        from datetime import datetime, UTC
        from pathlib import Path
        from airflow_provider_imagen.image_record import ImageRecord, StoredFile
        from airflow_provider_imagen.storage.manifest import manifest_line, write_manifest
        from airflow_provider_imagen.storage.task_identity import TaskInstanceKey
        for map_index in range(int(sys.argv[1]), int(sys.argv[1]) + 15):
            ti_key = TaskInstanceKey(dag_id="d", task_id="t", run_id="r", map_index=map_index)
            file = StoredFile("x", f"{{map_index}}.png", "x" * 64, 1, "image/png", 1, 1)
            record = ImageRecord.of(file, prompt_index=0, prompt="p" * 500)
            line = manifest_line(record, file, ti_key=ti_key, created_at=datetime(2026, 1, 1, tzinfo=UTC))
            write_manifest(Path({str(tmp_path)!r}), ti_key=ti_key, lines=[line])
        """
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(start)]) for start in (0, 15, 30)]
    looks = 0
    while any(writer.poll() is None for writer in writers):
        data = read_bytes(tmp_path / "metadata.jsonl")
        if data:
            assert data.endswith(b"\n")
            assert all(json.loads(text) for text in data.splitlines())
            looks += 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert looks > 0
    assert [one["map_index"] for one in lines_of(tmp_path)] == list(range(45))


def test_a_cleared_task_keeps_its_images_that_still_exist(folder, ti_key):
    for stem in ("old", "gone"):
        save_image(picture(), folder=folder, stem=stem)
    (folder / "gone.png").unlink()
    write_manifest(
        folder,
        ti_key=ti_key,
        lines=[line(ti_key, number, file_name=f"{n}.png") for number, n in enumerate(("old", "gone"))],
    )
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, file_name="new.png")])
    assert sorted(one["file_name"] for one in lines_of(folder)) == ["new.png", "old.png"]


def test_a_file_written_by_two_tasks_is_listed_once_as_the_later_one(folder, ti_key):
    later = replace(ti_key, run_id="a-later-run")
    write_manifest(
        folder,
        ti_key=later,
        lines=[line(later, 0, file_name="a.png", sha256="1" * 64, created_at=NOON + timedelta(hours=1))],
    )
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, file_name="a.png")])
    assert [one["sha256"] for one in lines_of(folder)] == ["1" * 64]


def test_foreign_lines_that_describe_a_file_are_kept_unchanged(folder, ti_key):
    foreign = '{"file_name": "mine.png",  "text": "café", "number": NaN}\n'.encode()
    no_lines = [b"root:x:0:0", b"\xff", b"[" * 100_000, b'"file_name"', b'{"text": "a"}', b'{"file_name": 7}', b"7"]
    for place in range(len(no_lines)):
        mixed = b"".join(each + b"\n" for each in no_lines[:place]) + foreign + b"\n".join(no_lines[place:])
        write_bytes_atomically(folder / "metadata.jsonl", mixed, content_type="application/x-ndjson")
        for _ in range(2):
            write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0), line(ti_key, 1)])
        found = read_bytes(folder / "metadata.jsonl")
        assert found.startswith(foreign)
        assert found.count(b"\n") == 3


def test_an_edited_part_adds_no_unreadable_lines_to_the_manifest(folder, ti_key):
    ours = json.dumps(line(ti_key, 1, file_name="plain.png").to_json()).encode()
    part = b"\n".join(
        [
            ours + b" \r",
            '{"file_name": "end of line.png", "prompt": "a\u2028b"}'.encode(),
            b'{"file_name": "no text.png", "prompt": "\xff"}',
            b'{"file_name": "number.png", "map_index": 2.0, "prompt": NaN}',
            b'{"prompt": "no name"}',
            b"[" * 100_000,
            b"17",
        ]
    )
    path = folder / ".imagen" / "parts" / "edited.jsonl"
    write_bytes_atomically(path, part, content_type="application/x-ndjson")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, file_name="new.png")])
    assert {one["file_name"] for one in lines_of(folder)} == {"plain.png", "end of line.png", "number.png", "new.png"}
    assert ours + b"\n" in read_bytes(folder / "metadata.jsonl")
    assert b"\r" not in read_bytes(folder / "metadata.jsonl")


# --- parts of replaced attempts ---------------------------------------------------------------------------------------


def save(folder, *names):
    for name in names:
        write_bytes_atomically(folder / name, picture(), content_type="image/png")


def test_a_replaced_attempt_lists_its_images_beside_those_of_the_new_one(folder, ti_key):
    save(folder, "old.png", "new.png", "both.png")
    old = [line(ti_key, 0, file_name="old.png"), line(ti_key, 2, file_name="both.png", seed=1)]
    later = NOON + timedelta(seconds=1)
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 1, file_name="new.png")])
    write_manifest(folder, ti_key=ti_key, lines=old, attempt="1")
    write_manifest(
        folder, ti_key=ti_key, lines=[line(ti_key, 2, file_name="both.png", seed=2, created_at=later)], attempt="2"
    )
    assert [(one["file_name"], one["seed"]) for one in lines_of(folder)] == [
        ("old.png", None),
        ("new.png", None),
        ("both.png", 2),
    ]
    assert sorted(one.file_name for one in recorded_lines(folder, ti_key)) == [
        *("both.png", "both.png"),
        *("new.png", "old.png"),
    ]
    assert recorded_names(folder, ti_key) == {"new.png": True}


def test_the_part_of_a_replaced_attempt_counts_for_no_other_task_instance(folder, ti_key):
    other = replace(ti_key, map_index=7)
    save(folder, "a.png")
    write_manifest(folder, ti_key=other, lines=[line(other, 0, file_name="a.png")], attempt="1")
    assert recorded_lines(folder, ti_key) == []
    assert not has_part(folder, other)
    write_manifest(folder, ti_key=ti_key, lines=[])
    assert has_part(folder, ti_key)
    assert [one["map_index"] for one in lines_of(folder)] == [7]


def test_missing_files_are_dropped_from_all_parts_of_the_task_and_no_other(folder, ti_key):
    other = replace(ti_key, map_index=7)
    save(folder, "kept.png", "other.png")
    for one, attempt, names in (
        (ti_key, "1", ["gone-1.png", "kept.png"]),
        (ti_key, "2", ["gone-2.png"]),
        (other, "1", ["other.png", "gone-3.png"]),
    ):
        lines = [line(one, number, file_name=name) for number, name in enumerate(names)]
        write_manifest(folder, ti_key=one, lines=lines, attempt=attempt)
    assert len(lines_of(folder)) == 5
    write_manifest(folder, ti_key=ti_key, lines=[])
    assert {one["file_name"] for one in lines_of(folder)} == {"kept.png", "other.png", "gone-3.png"}
    assert [one.file_name for one in recorded_lines(folder, ti_key)] == ["kept.png"]


def test_a_replaced_attempt_removes_only_the_failures_it_resolved(folder, ti_key):
    failures = [FailureLine(prompt_index=number, client_request_id=f"r{number}") for number in range(3)]
    failures.append(FailureLine(prompt_index=3))
    write_manifest(folder, ti_key=ti_key, lines=[], failures=failures)
    for made, left in (("r9", [0, 1, 2, 3]), ("r1", [0, 2, 3]), ("r0", [2, 3])):
        late = [line(ti_key, 0, client_request_id=made)]
        write_manifest(folder, ti_key=ti_key, lines=late, failures=[FailureLine(prompt_index=9)], attempt=made)
        assert [failure.prompt_index for failure in read_failures(folder, ti_key)] == left
    write_manifest(folder, ti_key=ti_key, lines=[], failures=None)
    assert [failure.prompt_index for failure in read_failures(folder, ti_key)] == [2, 3]
    write_manifest(folder, ti_key=ti_key, lines=[], failures=())
    assert read_failures(folder, ti_key) == []


def test_an_attempt_that_was_replaced_leaves_failures_alone_that_it_has_no_part_in(tmp_path, ti_key):
    """Its successor may be writing them."""
    write_manifest(tmp_path, ti_key=ti_key, lines=[], failures=[FailureLine(prompt_index=0, client_request_id="r0")])
    before = os.stat(failures_address(tmp_path, ti_key)).st_ino
    write_manifest(tmp_path, ti_key=ti_key, lines=[line(ti_key, 1, client_request_id="r1")], attempt="1")
    assert os.stat(failures_address(tmp_path, ti_key)).st_ino == before


# --- foreign lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_invalid_line_hides_no_other_wherever_it_is(folder, ti_key, place):
    odd_key = b'{"file_name": "odd.png", "\\ud800": 1}'
    for odd in (b"not json \xff", b"17", b'{"prompt": "no name"}', b'{"file_name": 3}', odd_key):
        raw = [json.dumps(line(ti_key, number, file_name=f"{number}.png").to_json()).encode() for number in range(2)]
        raw.insert(place, odd)
        path = folder / ".imagen" / "parts" / "edited.jsonl"
        write_bytes_atomically(path, b"\n".join(raw), content_type="application/x-ndjson")
        write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 5, file_name="5.png")])
        assert {"0.png", "1.png", "5.png"} <= {one["file_name"] for one in read_manifest(folder)}
        write_bytes_atomically(folder / "metadata.jsonl", b"\n".join(raw), content_type="application/x-ndjson")
        assert {"0.png", "1.png"} <= {one["file_name"] for one in read_manifest(folder)}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_foreign_line_is_kept_wherever_it_is(folder, ti_key, place):
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, number) for number in range(2)])
    rows = read_bytes(folder / "metadata.jsonl").splitlines()
    foreign = b'{"file_name": "mine.png",  "text": "caf\xc3\xa9"}'
    rows.insert(place, foreign)
    write_bytes_atomically(folder / "metadata.jsonl", b"\n".join(rows), content_type="application/x-ndjson")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, number) for number in range(3)])
    assert read_bytes(folder / "metadata.jsonl").splitlines()[0] == foreign
    assert [one["prompt_index"] for one in lines_of(folder)[1:]] == [0, 1, 2]


def test_an_unreadable_part_is_an_error_before_the_manifest_is_replaced(tmp_path, ti_key):
    write_manifest(tmp_path, ti_key=ti_key, lines=[line(ti_key, 0)])
    (tmp_path / ".imagen" / "parts" / "broken.jsonl").mkdir()
    before = (tmp_path / "metadata.jsonl").read_bytes()
    with pytest.raises(StorageError):
        write_manifest(tmp_path, ti_key=ti_key, lines=[line(ti_key, 1)])
    assert (tmp_path / "metadata.jsonl").read_bytes() == before


def test_a_missing_folder_has_no_images(folder, ti_key):
    assert read_manifest(folder) == []
    assert read_failures(folder, ti_key) == []


@settings(max_examples=100, deadline=None)
@given(prompts=st.lists(st.text(st.characters() | st.sampled_from("\n\r\u2028\x85\ud800\0")), max_size=6))
def test_any_prompt_is_one_line_and_round_trips(prompts):
    from uuid import uuid4

    from upath import UPath

    folder = UPath(f"memory://{uuid4().hex}/x")
    ti_key = TaskInstanceKey(dag_id="d", task_id="t", run_id="r")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, n, prompt=text) for n, text in enumerate(prompts)])
    expected = [text.encode(errors="replace").decode() for text in prompts]
    assert [one["prompt"] for one in read_manifest(folder)] == expected
    assert read_bytes(folder / "metadata.jsonl").count(b"\n") == len(prompts)


# Folders that others can write to


SECRET = '{"file_name": "secret.png", "dag_id": "d", "sha256": "hush-hush"}\n{"file_name": "b", "text": "hush-hush"}\n'


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


def below(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*")}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
@pytest.mark.parametrize("place", ["metadata.jsonl", "own part", "part", "failures"])
def test_irregular_files_are_neither_followed_nor_waited_for(tmp_path, ti_key, secret, place, kind):
    folder = tmp_path / "pictures"
    names = {
        "own part": f".imagen/parts/{ti_key.identity}.jsonl",
        "part": ".imagen/parts/0123456789.jsonl",
        "failures": f".imagen/failures/{ti_key.identity}.jsonl",
    }
    planted = folder / names.get(place, place)
    planted.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(secret if kind == "link" else "/dev/zero")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)], failures=[FailureLine(prompt_index=1)])
    assert [one["prompt_index"] for one in lines_of(folder)] == [0]
    assert [one.prompt_index for one in recorded_lines(folder, ti_key)] == [0]
    assert recorded_names(folder, ti_key) == {lines_of(folder)[0]["file_name"]: True}
    assert [one.prompt_index for one in read_failures(folder, ti_key)] == [1]
    assert secret.read_text() == SECRET
    assert all("hush" not in path.read_text() for path in below(folder).values() if path.is_file() and path != planted)


@pytest.mark.parametrize("name", [".imagen", ".imagen/parts", ".imagen/failures"])
def test_a_hidden_folder_that_is_a_symbolic_link_is_not_written_to(tmp_path, ti_key, name):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    (folder / name).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(StorageError, match="is a symbolic link"):
        write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)], failures=[FailureLine(prompt_index=1)])
    assert os.listdir(elsewhere) == []


def test_the_output_folder_itself_may_be_a_symbolic_link(tmp_path, ti_key):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_manifest(tmp_path / "link", ti_key=ti_key, lines=[line(ti_key, 0)])
    assert len(lines_of(tmp_path / "real")) == 1


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "sub/../../a.png", "a//b.png", "a\0.png", "..", 7, None])
def test_a_name_that_leaves_the_folder_is_not_listed(folder, ti_key, name):
    part = folder / ".imagen" / "parts" / f"{ti_key.identity}-9.jsonl"
    write_bytes_atomically(part, json.dumps(line(ti_key, 0, file_name=name).to_json()).encode(), content_type="")
    write_manifest(folder, ti_key=replace(ti_key, run_id="b"), lines=[line(ti_key, 1)])
    assert [one["prompt_index"] for one in lines_of(folder)] == [1]
    assert recorded_lines(folder, ti_key) == []


def test_an_images_path_follows_from_its_file_name(folder, ti_key):
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, file_name="sub/a.png", path="/home/me/a.png")])
    assert [one.path for one in recorded_lines(folder, ti_key)] == [str(folder / "sub" / "a.png")]


@pytest.mark.parametrize("forged_part", ["evil", "zzzzzzzzzz", "0000000000-1", "{own}-evil", "{other}"])
def test_a_planted_part_does_not_replace_our_line(folder, ti_key, forged_part):
    stored = save_image(picture(), folder=folder, stem="a")
    file_fields = {"file_name": "a.png", "sha256": stored.file.sha256, "bytes": stored.file.bytes}
    other = replace(ti_key, run_id="evil")
    liar = other if "other" in forged_part else ti_key
    forged = line(
        liar, 0, prompt="forged", created_at=NOON + timedelta(days=36500), **{**file_fields, "sha256": "f" * 64}
    )
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, prompt="true", **file_fields)])
    name = forged_part.format(own=ti_key.identity, other=other.identity)
    write_bytes_atomically(
        folder / ".imagen" / "parts" / f"{name}.jsonl", json.dumps(forged.to_json()).encode(), content_type=""
    )
    for writer in (ti_key, replace(ti_key, run_id="third")):
        lines = [line(ti_key, 0, prompt="true", **file_fields)] if writer is ti_key else []
        write_manifest(folder, ti_key=writer, lines=lines)
        assert [one["prompt"] for one in lines_of(folder)] == ["true"]


def test_a_planted_part_that_states_our_digest_does_not_replace_our_line(folder, ti_key):
    stored = save_image(picture(), folder=folder, stem="a")
    file_fields = {"file_name": "a.png", "sha256": stored.file.sha256, "bytes": stored.file.bytes}
    other = replace(ti_key, run_id="evil")
    write_manifest(folder, ti_key=other, lines=[line(other, 0, created_at=NOON + timedelta(days=9), **file_fields)])
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, **file_fields)])
    assert [one["run_id"] for one in lines_of(folder)] == [ti_key.run_id]


@pytest.mark.parametrize("left_out", [None, "dag_id", "run_id", "task_id", "map_index"])
def test_a_line_in_a_part_that_it_does_not_name_is_not_trusted_although_it_states_our_digest(folder, ti_key, left_out):
    stored = save_image(picture(), folder=folder, stem="a")
    facts = {"file_name": "a.png", "sha256": stored.file.sha256, "bytes": stored.file.bytes}
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0, prompt="true", **facts)])
    forged = line(ti_key, 0, prompt="forged", created_at=NOON + timedelta(days=9), **facts).to_json()
    forged.pop(left_out, None)
    write_bytes_atomically(
        folder / ".imagen" / "parts" / "evil.jsonl", json.dumps(forged).encode(), content_type="application/x-ndjson"
    )
    write_manifest(folder, ti_key=replace(ti_key, run_id="third"), lines=[])
    assert [one["prompt"] for one in lines_of(folder)] == ["true"]


def test_a_part_with_wrongly_typed_values_does_not_break_the_manifest(folder, ti_key):
    odd = json.dumps({"file_name": "a.png", "map_index": "x", "created_at": [], "bytes": "many", "prompt_index": {}})
    write_bytes_atomically(folder / ".imagen" / "parts" / "odd.jsonl", odd.encode(), content_type="")
    write_manifest(folder, ti_key=ti_key, lines=[line(ti_key, 0)])
    assert len(lines_of(folder)) == 2


def test_the_images_of_a_running_task_instance_are_listed_apart_until_it_ends(folder, ti_key):
    write_progress(folder, ti_key=ti_key, lines=[line(ti_key, 0)])
    write_progress(folder, ti_key=ti_key, lines=[line(ti_key, 0), line(ti_key, 1)])
    path = folder / ".imagen" / "progress" / f"{ti_key.identity}.jsonl"
    assert progress_address(folder, ti_key).endswith(f"/.imagen/progress/{ti_key.identity}.jsonl")
    assert [json.loads(text)["prompt_index"] for text in read_bytes(path).splitlines()] == [0, 1]
    assert read_bytes(folder / "metadata.jsonl") is None

    delete_progress(folder, ti_key)
    assert read_bytes(path) is None
    delete_progress(folder, ti_key)


def test_a_link_in_place_of_the_list_of_a_running_task_instance_is_replaced_not_followed(tmp_path, ti_key):
    path = tmp_path / ".imagen" / "progress" / f"{ti_key.identity}.jsonl"
    path.parent.mkdir(parents=True)
    (tmp_path / "private").write_text("private")
    path.symlink_to(tmp_path / "private")
    write_progress(tmp_path, ti_key=ti_key, lines=[line(ti_key, 0)])
    assert (tmp_path / "private").read_text() == "private"
    assert not path.is_symlink()
