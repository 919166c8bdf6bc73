from __future__ import annotations

import base64
import hashlib
import os
import socket
import tracemalloc
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from airflow_provider_imagen.catalogue.input_images import MAX_INLINE_BYTES, ImageFile, reference_kind
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.exceptions import InvalidArgumentsError, InvalidRequestError, StorageError
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.run import input_reader
from airflow_provider_imagen.run.input_reader import InputReader
from airflow_provider_imagen.run.plan import make_plan

KONTEXT = "flux/kontext-pro/image-to-image"
GPT = "openai/gpt-image-1"
LINK = "https://pictures.example/cat.png"


def encoded(size=(40, 30), color=(10, 20, 30), kind="PNG", mode="RGB"):
    target = BytesIO()
    Image.new(mode, size, color).save(target, format=kind)
    return target.getvalue()


class Disk:
    """A folder that counts what is read from it, and a server with one image."""

    def __init__(self, folder):
        self.folder = folder
        self.opened = []
        self.fetched = []
        self.reader = InputReader(open_path=self._open, fetch=self._fetch)

    def _open(self, address):
        self.opened.append(address)
        return Path(address)

    def _fetch(self, url):
        self.fetched.append(url)
        return encoded()

    def put(self, name, data=None, **options):
        path = self.folder / name
        path.write_bytes(encoded(**options) if data is None else data)
        return str(path)

    def plan(self, prompt="a cat", model=KONTEXT, **arguments):
        return make_plan(
            prompt=prompt, arguments={"model": model, **arguments}, can_store=True, resolve=self.reader.resolve
        )

    def refuse(self, *args, **arguments):
        with pytest.raises(InvalidArgumentsError) as caught:
            self.plan(*args, **arguments)
        return {problem.field: problem.allowed for problem in caught.value.problems}

    def request(self, **arguments):
        (unit,) = self.plan(**arguments).requests
        return unit.request

    def wire(self, **arguments):
        return self.reader.wire(self.request(**arguments))


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def data_uri(data, mime_type="image/png"):
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


# ---------------------------------------------------------------- ways to pass an image


def test_a_stored_file_is_sent_as_a_data_uri_in_the_models_own_field(disk):
    path = disk.put("cat.png")
    body, files = disk.wire(input_images=path)
    assert files is None
    assert body["image_url"] == data_uri(Path(path).read_bytes())


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("flux/dev/image-to-image", "image_url", LINK),
        (KONTEXT, "image_url", LINK),
        ("alibaba/qwen-image-3-edit", "image_urls", [LINK]),
        ("alibaba/qwen-image-edit", "image", LINK),
        ("luma/uni-1", "image_url", LINK),
        (GPT, "image", LINK),
    ],
)
def test_a_url_is_sent_unchanged_in_the_models_own_field(disk, model, field, value):
    request = disk.request(model=model, input_images=LINK)
    assert request.body[field] == value
    assert request.path == ("/v1/images/edits" if model == GPT else "/v1/images/generations")
    assert disk.opened == []


def test_several_images_go_into_the_field_that_takes_several(disk):
    assert disk.request(model="luma/uni-1", input_images=[LINK, LINK]).body["image_urls"] == [LINK, LINK]
    assert disk.request(model=KONTEXT, input_images=[LINK, LINK]).body["image_url"] == [LINK, LINK]


def test_a_record_means_its_stored_copy_or_else_its_url(disk):
    path = disk.put("cat.png")
    records = [{"path": path, "url": LINK, "sha256": "0"}, {"path": None, "url": LINK}]
    stored, link = disk.request(model="alibaba/qwen-image-3-edit", input_images=records).body["image_urls"]
    assert (stored.address, link) == (path, LINK)
    assert disk.request(model="flux/dev/image-to-image", input_images=records[:1]).body["image_url"].address == path


def test_lists_from_mapped_tasks_are_flattened(disk):
    path = disk.put("cat.png")
    body = disk.request(model="alibaba/qwen-image-3-edit", input_images=[[{"path": path}], [{"url": LINK}, path]]).body
    assert [str(part)[:7] for part in body["image_urls"]] == ["sha256:", "https:/", "sha256:"]


def test_the_models_own_fields_accept_files_and_records_too(disk):
    path = disk.put("cat.png")
    assert disk.request(image_url=path).body["image_url"].address == path
    assert disk.request(image_url=[{"path": path}, LINK]).body["image_url"][0].address == path
    request = disk.request(
        model="beeble/switchx-image-to-image", image_url=LINK, reference_image_url=path, prompt="a cat"
    )
    assert request.body["reference_image_url"].address == path


def test_each_item_may_have_its_own_images(disk):
    one, two = disk.put("one.png", color=1), disk.put("two.png", color=2)
    plan = disk.plan(
        [{"prompt": "a", "input_images": one}, {"prompt": "b", "input_images": two}, "c"], input_images=LINK
    )
    images = [unit.request.body["image_url"] for unit in plan.requests]
    assert [getattr(image, "address", image) for image in images] == [one, two, LINK]


@pytest.mark.parametrize(
    ("text", "field", "kind"),
    [
        ("data:image/png;base64,AAAA", "input_images", "data"),
        ("HTTPS://host/cat.png", "input_images", "url"),
        ("s3://bucket/cat.png", "image", "path"),
        ("iVBORw0KGgoAAAANSUhEUgAA", "image", "base64"),
        ("iVBORw0KGgoAAAANSUhEUgAA", "input_images", "path"),
        ("/data/pictures/cat.png", "image", "path"),
    ],
)
def test_the_kind_of_reference_a_string_is(text, field, kind):
    assert reference_kind(text, field=field) == kind


# ---------------------------------------------------------------- refused before paying


def test_all_problems_with_the_images_are_reported_at_once(disk):
    html, cut = disk.put("page.png", b"<html>no</html>"), disk.put("cut.png", encoded((300, 300))[:200])
    problems = disk.refuse(
        model="bytedance/seedream-4-5",
        input_images=[str(disk.folder / "none.png"), html, cut, {"caption": "x"}, 5, {"manifest": "m", "count": 9}],
    )
    assert problems["input_images[0]"] == "the file does not exist"
    assert "HTML" in problems["input_images[1]"]
    assert "truncated or corrupt" in problems["input_images[2]"]
    assert "a record with path or url" in problems["input_images[3]"]
    assert "a record with path or url" in problems["input_images[4]"]
    assert "manifest" in problems["input_images[5]"]


def test_problems_of_an_item_name_that_item(disk):
    problems = disk.refuse([{"prompt": "a", "input_images": LINK}, {"prompt": "b", "input_images": "nowhere.png"}])
    assert problems == {"prompt[1].input_images": "the file does not exist"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"input_images": [LINK] * 5}, "flux/kontext-pro/image-to-image takes at most 4 images; 5 were given"),
        ({"model": "reve/edit-image", "input_images": [LINK] * 2}, "takes one image; 2 were given"),
        ({"model": GPT, "input_images": [LINK] * 17}, "takes at most 16 images; 17 were given"),
        ({"model": "flux/schnell", "input_images": LINK}, "flux/schnell takes no input images and would ignore them"),
        ({"input_images": []}, "at least one image is needed"),
        ({"input_images": LINK, "image_url": LINK}, "set either input_images or image_url, not both"),
        ({"input_images": "data:text/plain;base64,AAAA"}, "a data URI"),
        ({"model": "some/new-model", "input_images": LINK}, "pass its images in its own field"),
    ],
)
def test_unsupported_images_are_refused_under_the_argument_the_author_used(disk, arguments, sentence):
    (problem,) = disk.refuse(**arguments).items()
    assert problem[0] == "input_images"
    assert sentence in problem[1]


def test_a_missing_image_is_reported_under_the_field_of_the_model(disk):
    assert disk.refuse().keys() == {"image_url"}


def test_a_file_above_the_size_limit_is_not_even_read(disk):
    path = disk.folder / "huge.png"
    with path.open("wb") as file:
        file.truncate(50_000_001)
    assert "50,000,001 bytes; at most 50,000,000" in disk.refuse(input_images=str(path))["input_images"]


@pytest.fixture
def special(disk):
    """Return a function that creates a file that is not a regular one."""
    servers = []

    def special(kind):
        path = disk.folder / f"{kind}.png"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            servers.append(socket.socket(socket.AF_UNIX))
            servers[0].bind(str(path))
        else:
            path.symlink_to(f"/dev/{kind}")
        return str(path)

    yield special
    for server in servers:
        server.close()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "socket", "zero", "stdin"])
def test_only_regular_files_are_read(disk, special, kind):
    """A pipe would block its reader forever, and /dev/zero would fill the memory."""
    assert "a regular file is required" in disk.refuse(input_images=special(kind))["input_images"]


@pytest.mark.timeout(20)
def test_a_file_replaced_by_a_pipe_is_not_waited_for(disk):
    path = disk.put("cat.png")
    request = disk.request(input_images=path)
    Path(path).unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match="was changed after"):
        disk.reader.wire(request)


def test_an_object_of_unknown_size_is_read_up_to_the_limit(monkeypatch):
    class Sizeless(MemoryFileSystem):
        def info(self, path, **options):
            return {**super().info(path, **options), "size": None}

    monkeypatch.setattr(input_reader, "MAX_INPUT_BYTES", 1000)
    store = Sizeless()
    store.pipe_file("/bucket/big.png", bytes(1001))
    path = SimpleNamespace(protocol="memory", fs=store, path="/bucket/big.png")
    reader = InputReader(open_path=lambda _: path, fetch=lambda _: b"")
    arguments = {"model": KONTEXT, "input_images": "memory://bucket/big.png"}
    with pytest.raises(StorageError, match="more than 1,000 bytes"):
        make_plan(prompt="a cat", arguments=arguments, can_store=True, resolve=reader.resolve)


@pytest.mark.parametrize(
    "data",
    [
        b"root:x:hush-hush:0:0",
        encoded()[:60] + b"hush-hush" + encoded()[60:],
        encoded()[:40] + b"hush" + encoded()[44:],
        encoded()[:-12] + b"\0\0\0\0hushhush",
        b"GIF89a" + b"hush-hush",
    ],
)
def test_an_error_never_quotes_a_file(disk, data):
    problem = disk.refuse(input_images=disk.put("secret.png", data))["input_images"]
    assert "an image is required" in problem
    assert "hush" not in problem
    assert data[:8].hex() not in problem
    assert str(len(data)) not in problem


OUTSIDE = "only files in the folders of [imagen] input_roots are allowed"


@pytest.fixture
def confined(disk):
    """Return the same folder, with one subfolder that images may come from."""
    for name in ("allowed", "allowed-not", "private"):
        (disk.folder / name).mkdir()
    disk.reader = InputReader(open_path=disk._open, fetch=disk._fetch, roots=[disk.folder / "allowed"])
    return disk


def test_with_roots_images_come_only_from_them(confined):
    inside = confined.put("allowed/cat.png")
    assert confined.wire(input_images=inside)[0]["image_url"] == data_uri(Path(inside).read_bytes())
    for path in (
        confined.put("private/cat.png"),
        confined.put("allowed-not/cat.png"),
        str(confined.folder / "private/none.png"),
        str(confined.folder / "allowed/../private/cat.png"),
        str(confined.folder / "allowed"),
        "/dev/zero",
    ):
        assert confined.refuse(input_images=path) == {"input_images": OUTSIDE}


def test_a_symlink_does_not_lead_out_of_the_roots(confined):
    secret = confined.put("private/cat.png")
    (confined.folder / "allowed/file.png").symlink_to(secret)
    (confined.folder / "allowed/folder").symlink_to(confined.folder / "private")
    for name in ("file.png", "folder/cat.png", "folder/none.png"):
        assert confined.refuse(input_images=str(confined.folder / "allowed" / name)) == {"input_images": OUTSIDE}


def test_a_symlink_within_a_root_and_one_to_a_root_are_followed(confined):
    inside = Path(confined.put("allowed/cat.png"))
    (confined.folder / "allowed/current.png").symlink_to(inside)
    (confined.folder / "data").symlink_to(confined.folder / "allowed")
    for path in (confined.folder / "allowed/current.png", confined.folder / "data/cat.png"):
        assert confined.wire(input_images=str(path))[0]["image_url"] == data_uri(inside.read_bytes())


def test_a_file_replaced_by_a_symlink_after_the_check_is_not_sent(confined):
    secret, path = confined.put("private/cat.png"), confined.put("allowed/cat.png")
    request = confined.request(input_images=path)
    Path(path).unlink()
    Path(path).symlink_to(secret)
    with pytest.raises(StorageError, match="was changed after"):
        confined.reader.wire(request)


@pytest.mark.parametrize(
    ("root", "address", "is_allowed"),
    [
        ("memory://bucket/in", "memory://bucket/in/cat.png", True),
        ("memory://bucket/in/", "memory://conn@bucket/in/cat.png", True),
        ("memory://conn@bucket/in", "memory://conn@bucket/in/cat.png", True),
        ("memory://conn@bucket/in", "memory://other@bucket/in/cat.png", False),
        ("memory://conn@bucket/in", "memory://bucket/in/cat.png", False),
        ("memory://bucket/in", "memory://bucket/in-not/cat.png", False),
        ("memory://bucket/in", "memory://bucket/in/../cat.png", False),
        ("memory://bucket/in", "memory://elsewhere/in/cat.png", False),
        ("memory://bucket/in", "/bucket/in/cat.png", False),
        ("/bucket/in", "memory://bucket/in/cat.png", False),
    ],
)
def test_a_root_may_be_in_an_object_store(disk, root, address, is_allowed):
    attach(protocol="memory", fs=fsspec.filesystem("memory"))
    attach(protocol="memory", conn_id="conn", fs=fsspec.filesystem("memory"))
    attach(protocol="memory", conn_id="other", fs=fsspec.filesystem("memory"))
    for key in ("bucket/in", "bucket/in-not", "bucket", "elsewhere/in"):
        fsspec.filesystem("memory").pipe_file(f"/{key}/cat.png", encoded())
    disk.reader = InputReader(open_path=open_folder, fetch=disk._fetch, roots=[open_folder(root)])
    if is_allowed:
        assert disk.wire(input_images=address)[0]["image_url"] == data_uri(encoded())
    else:
        assert disk.refuse(input_images=address) == {"input_images": OUTSIDE}


def test_stored_images_of_one_json_request_share_one_size_limit():
    big = ImageFile("s3://b/x.png", "0" * 64, MAX_INLINE_BYTES // 2 + 1, "image/png", 10, 10)
    with pytest.raises(InvalidArgumentsError, match="64,000,000 bytes of stored images"):
        build_requests({"model": KONTEXT, "prompt": "a", "input_images": [big, big]}, can_store=True)
    assert build_requests({"model": GPT, "prompt": "a", "input_images": [big, big]}, can_store=True)


def test_a_mask_of_another_size_is_refused(disk):
    problems = disk.refuse(model=GPT, input_images=disk.put("a.png"), mask=disk.put("m.png", size=(9, 9)))
    assert problems == {"mask": "a mask must have the size of the first image, 40x30; this one is 9x9"}


def test_a_path_with_an_unknown_protocol_is_reported(disk):
    def open_path(address):
        raise ValueError("Protocol not known: ftpx")

    disk.reader = InputReader(open_path=open_path, fetch=disk._fetch)
    assert "Protocol not known" in disk.refuse(input_images="ftpx://host/a.png")["input_images"]


def test_an_unavailable_store_is_not_a_wrong_argument(disk):
    folder = disk.folder / "folder.png"
    folder.mkdir()
    with pytest.raises(StorageError) as caught:
        disk.plan(input_images=str(folder))
    assert caught.value.retry_helps


# ---------------------------------------------------------------- identity and memory


def test_a_request_is_identified_by_the_content_of_its_image_not_by_the_path(disk):
    one, two = disk.put("one.png"), disk.put("two.png")
    first = next(disk.plan(input_images=one).requests).key
    assert next(disk.plan(input_images=two).requests).key == first
    disk.put("one.png", color=(1, 1, 1))
    assert next(disk.plan(input_images=one).requests).key != first


def test_a_file_used_by_many_items_is_read_once(disk):
    path = disk.put("cat.png")
    plan = disk.plan([f"prompt {number}" for number in range(200)], input_images=[path, path])
    assert len(list(plan.requests)) == 200
    assert disk.opened == [path]


@pytest.mark.slow
def test_planning_keeps_no_bytes(disk):
    paths = []
    for number in range(30):
        image = Image.effect_noise((700, 700), 80)
        image.putpixel((0, 0), number)
        paths.append(str(disk.folder / f"{number}.png"))
        image.save(paths[-1])
    total = sum(Path(path).stat().st_size for path in paths)
    tracemalloc.start()
    plan = disk.plan([{"prompt": "x", "input_images": path} for path in paths])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.slots) == 30
    assert total > 8_000_000
    assert kept < 1_000_000
    assert peak < total / 2


def test_provenance_holds_the_digest_and_not_the_path(disk):
    path = disk.put("cat.png")
    (item,) = disk.plan(input_images=path).items
    assert str(item.arguments["input_images"]) == "sha256:" + hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ---------------------------------------------------------------- when sending


def test_a_file_changed_or_deleted_after_planning_is_not_sent(disk):
    path = disk.put("cat.png")
    request = disk.request(input_images=path)
    disk.put("cat.png", color=(9, 9, 9))
    with pytest.raises(StorageError, match="was changed after") as caught:
        disk.reader.wire(request)
    assert caught.value.retry_helps
    Path(path).unlink()
    with pytest.raises(StorageError, match="was deleted"):
        disk.reader.wire(request)


def test_an_image_is_resized_or_converted_only_where_the_model_documents_a_limit(disk):
    large, odd = disk.put("large.png", size=(2000, 2000)), disk.put("odd.gif", kind="GIF")
    body, _ = disk.wire(model="beeble/switchx-image-to-image", input_images=large)
    with Image.open(BytesIO(base64.b64decode(body["image_url"].partition(",")[2]))) as sent:
        assert sent.width * sent.height <= 2_770_000
    assert disk.wire(input_images=large)[0]["image_url"] == data_uri(Path(large).read_bytes())
    assert disk.wire(input_images=odd)[0]["image_url"] == data_uri(Path(odd).read_bytes(), "image/gif")
    body, _ = disk.wire(model="bytedance/dreamina-creative-upscale", prompt=None, input_images=odd)
    assert body["image_url"].startswith("data:image/png;base64,")


def test_the_edits_endpoint_gets_files_however_the_images_were_passed(disk):
    path, gif = disk.put("cat.jpg", kind="JPEG"), disk.put("cat.gif", kind="GIF")
    inline = data_uri(encoded())
    form, files = disk.wire(model=GPT, input_images=[path, LINK, inline, gif], num_images=2)
    assert [name for name, _ in files] == ["image[]"] * 4
    assert [mime_type for _, (_, _, mime_type) in files] == ["image/jpeg", "image/png", "image/png", "image/png"]
    assert [file_name for _, (file_name, _, _) in files] == [
        "image-0.jpeg",
        "image-1.png",
        "image-2.png",
        "image-3.png",
    ]
    assert files[0][1][1] == Path(path).read_bytes()
    assert disk.fetched == [LINK]
    assert form == {"model": GPT, "prompt": "a cat", "n": "2", "response_format": "url"}


def test_one_image_and_its_mask_are_two_files(disk):
    path, mask = disk.put("cat.png"), disk.put("mask.webp", mode="RGBA", color=(0, 0, 0, 0), kind="WEBP")
    _, files = disk.wire(model=GPT, input_images=path, mask=mask)
    assert [(name, mime_type) for name, (_, _, mime_type) in files] == [("image", "image/png"), ("mask", "image/png")]


def test_a_mask_of_the_wrong_size_for_a_url_is_refused_before_sending(disk):
    request = disk.request(model=GPT, input_images=LINK, mask=disk.put("mask.png", size=(9, 9)))
    with pytest.raises(InvalidRequestError, match=r"9x9.*40x30") as caught:
        disk.reader.wire(request)
    assert caught.value.field == "mask"


def test_a_data_uri_without_base64_is_not_uploaded(disk):
    with pytest.raises(InvalidArgumentsError, match="base64 data that cannot be decoded"):
        disk.wire(model=GPT, input_images="data:image/png;base64,AAAA!!!!")


def test_a_request_without_stored_images_is_sent_unchanged(disk):
    request = disk.request(input_images=LINK)
    body, files = disk.reader.wire(request)
    assert body is request.body
    assert files is None
