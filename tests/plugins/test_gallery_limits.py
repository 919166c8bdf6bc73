"""What the gallery reveals about files it does not show, and what a visitor can cost the web server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from airflow_provider_imagen.plugins.gallery import files
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.plugins.gallery.expiring_cache import ExpiringCache
from airflow_provider_imagen.plugins.gallery.files import read_failures_file, read_manifest_images
from airflow_provider_imagen.plugins.gallery.run_results import TaskImages
from airflow_provider_imagen.plugins.gallery.task_results import read_images

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

TI = TaskInstance("d", "r", "t", -1)


def record(**values: Any) -> dict[str, Any]:
    return {"prompt_index": 0, "image_index": 0, "prompt": "a fox", **values}


def file_fields(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def line(number: int = 0, **values: Any) -> str:
    ids = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}
    return json.dumps({"file_name": f"{number}.png", **record(prompt_index=number), **ids, **values})


# --- what is revealed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"root:x:0:0\n", b"", b"<html>", b"\x89PNG\r\n\x1a\n not one", b"\0" * 5000])
def test_no_response_confirms_the_digest_of_a_file_that_is_not_an_image(
    forged: Any, visit: Any, tmp_path: Path, content: bytes
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content)
    right = file_fields(secret)
    gallery = forged(
        [
            record(image_index=0, **right),
            record(image_index=1, **right | {"sha256": "0" * 64}),
            record(image_index=2, **right | {"path": str(tmp_path / "none")}),
        ]
    )
    ann = visit()

    for size in ("full", "thumbnail"):
        responses = [ann.get(gallery.file()[0], params=gallery.file(0, image, size=size)[1]) for image in range(3)]
        assert len({(response.status_code, response.text) for response in responses}) == 1
    pages = [ann.get(gallery.page()[0], params=gallery.page(0, image)[1]).text for image in range(3)]
    shown = {"not there any more" in page for page in pages}
    assert len(shown) == 1


def test_knowing_a_digest_does_not_give_access_to_the_preview(forged: Any, visit: Any, tmp_path: Path) -> None:
    """The preview was created for an authorized user; another user knows the digest, but not the path."""
    Image.effect_noise((64, 64), 50).save(tmp_path / "secret.png")
    fields = file_fields(tmp_path / "secret.png")
    ours = forged([record(**fields)])
    assert visit().get(ours.file()[0], params=ours.file(size="thumbnail")[1]).status_code == 200

    guessed = fields | {"path": str(tmp_path / "elsewhere.png")}
    theirs = forged([record(**guessed)])

    assert visit().get(theirs.file()[0], params=theirs.file(size="thumbnail")[1]).status_code == 410


@pytest.mark.parametrize("number", ["9" * 20, str(2**63), str(2**31), "-2", "1.5", "x", "", "²"])
@pytest.mark.parametrize("name", ["map_index", "prompt_index", "image_index", "page"])
def test_a_number_out_of_range_makes_an_invalid_url(forged: Any, visit: Any, name: str, number: str) -> None:
    gallery = forged([record()])
    ann = visit()

    for path, query in (gallery.page(), gallery.file(), gallery.task(), ("/imagen/run", gallery.ids)):
        used = {"map_index", "page"} if path.endswith("task") else {"page"} if path.endswith("run") else {"map_index"}
        used |= {"prompt_index", "image_index"} if "prompt_index" in query else set()
        if name in used:
            assert ann.get(path, params={**query, name: number}).status_code == 422, path


def test_the_largest_valid_number_is_an_image_that_does_not_exist(forged: Any, visit: Any) -> None:
    gallery = forged([record()])

    for name in ("map_index", "prompt_index", "image_index"):
        response = visit().get(gallery.file()[0], params={**gallery.file()[1], name: 2**31 - 1})
        assert response.status_code == 404


def test_an_id_with_a_nul_is_not_found(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    for name in ("run_id", "task_id"):
        assert visit().get(gallery.file()[0], params={**gallery.file()[1], name: "a\0b"}).status_code == 404


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_large_manifest_uses_little_memory_for_several_viewers(tmp_path: Path) -> None:
    manifest = tmp_path / "metadata.jsonl"
    with manifest.open("w") as file:
        number = 0
        while file.tell() < 63_000_000:
            file.write(line(number, path="/pictures/" + "p" * 80, prompt="a raccoon eating ice-cream " * 12) + "\n")
            number += 1
    script = f"""
        import re, threading
        from pathlib import Path
        from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
        from airflow_provider_imagen.plugins.gallery.files import read_manifest_images
        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
        before, found = peak(), []
        def look():
            found.append(len(read_manifest_images(TaskInstance("d", "r", "t", -1), {str(manifest)!r})))
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(peak() - before, *found)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=os.environ, timeout=100
    )

    megabytes, *found = map(int, ran.stdout.split() or pytest.fail(ran.stderr))
    assert found == [min(number, files.MAX_LISTED)] * 4
    assert megabytes < 350


def test_lines_longer_than_a_task_writes_are_skipped(tmp_path: Path) -> None:
    manifest = tmp_path / "metadata.jsonl"
    long = line(1, junk=[{}] * 1_000_000)
    manifest.write_text("\n".join([long, line(0), "no json", "[1]", long, line(2), line(3, map_index=0), long]))

    assert [image.prompt_index for image in read_manifest_images(TI, str(manifest))] == [0, 2]


@pytest.mark.parametrize("name", [5, None, ["a.png"], {"a": 1}, True, "", "../a.png", "/a.png"])
def test_a_line_without_a_file_in_the_folder_is_skipped_alone(tmp_path: Path, name: Any) -> None:
    manifest = tmp_path / "metadata.jsonl"
    manifest.write_text("\n".join([line(0), line(1, file_name=name), line(2)]))

    assert [image.prompt_index for image in read_manifest_images(TI, str(manifest))] == [0, 2]
    (images,) = files.read_run_images("d", "r", str(manifest)).values()
    assert [image.prompt_index for image in images] == [0, 2]


def test_an_image_is_found_at_its_first_place() -> None:
    images = read_images(TI, [record(prompt_index=n // 2, image_index=0) for n in range(6)])
    found = TaskImages(TI, None, images)

    assert [found.find(n, 0) for n in range(4)] == [0, 2, 4, None]
    assert found.find(0, 1) is None


def test_a_last_line_without_a_newline_and_a_line_at_the_limit_are_read(tmp_path: Path) -> None:
    manifest = tmp_path / "metadata.jsonl"
    padding = files._MAX_LINE_BYTES - len(line(0, junk="")) - 1
    manifest.write_text(line(0, junk="x" * padding) + "\n" + line(1, junk="x" * (padding + 1)) + "\n" + line(2))

    assert [image.prompt_index for image in read_manifest_images(TI, str(manifest))] == [0, 2]


@pytest.mark.parametrize("source", ["manifest", "XCom"])
def test_a_task_shows_a_limited_number_of_images_and_says_so(
    forged: Any, visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    from airflow_provider_imagen.plugins.gallery import collection

    monkeypatch.setattr(files, "MAX_LISTED", 3)
    monkeypatch.setattr(collection, "MAX_LISTED", 3)
    manifest = tmp_path / "metadata.jsonl"
    records = [record(prompt_index=number) for number in range(5)]
    gallery = forged(records if source == "XCom" else {"manifest": str(manifest), "count": 5}, made=5)
    ids = {**gallery.ids, "task_id": "paint", "map_index": -1}
    manifest.write_text("\n".join(line(number, **ids) for number in range(5)))

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert page.text.count('class="card"') == 3
    assert "Only 3 images of this task are listed." in page.text


def test_a_manifest_that_is_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metadata.jsonl")

    with pytest.raises(files.FileUnavailableError):
        read_manifest_images(TI, str(tmp_path / "metadata.jsonl"))


def test_failures_are_read_up_to_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_imagen.storage.manifest import failures_address
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

    monkeypatch.setattr(files, "MAX_LISTED", 2)
    ti_key = TaskInstanceKey(dag_id="d", task_id="t", run_id="r", map_index=-1)
    address = failures_address(files.open_folder(str(tmp_path)), ti_key).removeprefix("file://")
    os.makedirs(os.path.dirname(address))
    with open(address, "w") as file:
        file.write("\n".join(json.dumps({"prompt_index": number, "message": "no"}) for number in range(4)))

    assert [problem.prompt_index for problem in read_failures_file(TI, str(tmp_path / "metadata.jsonl"))] == [0, 1]


class Results:
    """A cache of texts, and the keys that had to be computed."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.worked: list[str] = []
        self.memory: ExpiringCache[str] = ExpiringCache(
            **{"entries": 10, "seconds": 60.0, "max_bytes": 100, "size_of": len, "clock": lambda: self.now, **limits}
        )

    def work_for(self, key: str, size: int = 10) -> Any:
        async def work() -> str:
            self.worked.append(key)
            return "x" * size

        return work

    async def get(self, key: str, size: int = 10) -> None:
        assert await self.memory.get(key, self.work_for(key, size)) == "x" * size


def test_the_cache_is_bounded_by_bytes() -> None:
    async def look() -> None:
        results = Results()
        for key in ("a", "b", "a", "c"):
            await results.get(key, 40)
        assert results.worked == ["a", "b", "c"]
        assert [results.memory.knows(key) for key in "abc"] == [True, False, True]  # b was the least recently used

        await results.get("huge", 10_000)
        assert [results.memory.knows(key) for key in ("a", "c", "huge")] == [False, False, True]
        await results.get("huge", 10_000)
        await results.get("d", 10)
        assert results.worked == ["a", "b", "c", "huge", "d"]
        assert [results.memory.knows(key) for key in ("huge", "d")] == [False, True]

    asyncio.run(look())


def test_a_result_that_took_long_is_kept_three_times_as_long() -> None:
    results = Results(seconds=1.0)

    async def look() -> None:
        async def work() -> str:
            results.now += 5
            return "x"

        await results.memory.get("slow", work)
        await results.get("fast")
        results.now += 1
        assert [results.memory.knows(key) for key in ("slow", "fast")] == [True, False]
        results.now += 14
        assert not results.memory.knows("slow")

    asyncio.run(look())


def test_a_result_that_is_not_current_is_computed_again() -> None:
    results = Results()

    async def look() -> None:
        for is_current in (True, False, True):
            await results.memory.get("a", results.work_for("a"), is_current=lambda _, keep=is_current: keep)

    asyncio.run(look())
    assert results.worked == ["a", "a"]


def test_a_refreshed_result_is_counted_once() -> None:
    async def look() -> None:
        results = Results(seconds=1.0)
        for _ in range(20):
            await results.get("a", 40)
            results.now += 2
        await results.get("b", 40)
        assert len(results.memory._kept) == 2

    asyncio.run(look())


def test_the_cache_drops_expired_results_by_itself() -> None:
    async def look() -> None:
        results = Results(seconds=0.05)
        await results.get("a")
        results.now = 1.0
        await asyncio.sleep(0.2)
        assert not results.memory._kept
        assert results.memory._bytes == 0

    asyncio.run(look())
