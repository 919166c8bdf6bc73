from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO

import pytest
from msgspec.structs import replace
from PIL import Image, ImageFile

from airflow_provider_imagen.exceptions import BadImageError, StorageError
from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.run_report import FailureLine
from airflow_provider_imagen.storage.atomic_write import is_intact, read_bytes
from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.manifest import manifest_line, read_manifest, write_manifest
from airflow_provider_imagen.storage.naming import NameFields, image_stems
from airflow_provider_imagen.storage.provenance import read_provenance
from airflow_provider_imagen.storage.save_image import save_image

from .conftest import picture, pixels, with_credentials


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path, memory_folder):
    return tmp_path / "pictures" if request.param == "disk" else memory_folder


def files(folder) -> list[str]:
    start = str(folder)
    return sorted(str(path).removeprefix(start).lstrip("/") for path in folder.rglob("*") if path.is_file())


def test_the_returned_record_describes_the_stored_image(folder, provenance):
    stored = save_image(picture(), folder=folder, stem="sub/fox", provenance=provenance, thumbnail_pixels=32)
    data = read_bytes(folder / "sub" / "fox.png")
    assert stored.file.file_name == "sub/fox.png"
    assert stored.file.path == str(folder / "sub" / "fox.png")
    assert (stored.file.bytes, stored.file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (stored.file.mime_type, stored.file.width, stored.file.height) == ("image/png", 64, 48)
    assert stored.notes == ()
    assert read_provenance(data)["prompt"] == provenance.prompt
    assert pixels(data) == pixels(picture())
    assert stored.file.thumbnail == ".imagen/thumbnails/sub/fox.png.webp"
    assert inspect_image(read_bytes(folder / ".imagen" / "thumbnails" / "sub" / "fox.png.webp")).width == 32
    assert files(folder) == [".imagen/thumbnails/sub/fox.png.webp", "sub/fox.png"]
    assert is_intact(folder / "sub" / "fox.png", size=stored.file.bytes, sha256=stored.file.sha256)


def test_by_default_the_bytes_are_stored_as_delivered(folder):
    data = picture("JPEG")
    stored = save_image(data, folder=folder, stem="fox")
    assert read_bytes(folder / "fox.jpg") == data
    assert stored.file.thumbnail is None
    assert files(folder) == ["fox.jpg"]


@pytest.mark.parametrize(
    ("image_format", "name"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("avif", "avif")]
)
def test_a_converted_image_has_its_provenance_and_a_matching_extension(image_format, name, folder, provenance):
    stored = save_image(picture("BMP"), folder=folder, stem="fox", provenance=provenance, image_format=image_format)
    data = read_bytes(folder / f"fox.{name}")
    assert inspect_image(data).extension == name
    assert read_provenance(data)["seed"] == provenance.seed
    assert stored.notes == ()


def test_repeating_a_call_writes_the_same_files(folder, provenance):
    options = {"folder": folder, "stem": "fox", "provenance": provenance, "image_format": "webp", "thumbnail_pixels": 9}
    assert save_image(picture(), **options) == save_image(picture(), **options)
    assert len(files(folder)) == 2


def test_an_image_that_cannot_be_converted_keeps_its_format(folder, provenance):
    target = BytesIO()
    Image.new("L", (16_400, 2)).save(target, format="PNG")
    stored = save_image(
        target.getvalue(), folder=folder, stem="wide", provenance=provenance, image_format="webp", thumbnail_pixels=50
    )
    assert stored.file.file_name == "wide.png"
    assert stored.notes[0].startswith("Kept as png:")
    assert read_provenance(read_bytes(folder / "wide.png"))["seed"] == provenance.seed


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("target", ["png", "jpeg", "webp", "avif"])
def test_an_image_whose_content_credentials_a_conversion_drops_is_also_kept_as_delivered(
    source, target, folder, provenance
):
    delivered = with_credentials(picture(source))
    stored = save_image(
        delivered, folder=folder, stem="sub/fox", owner="abc", provenance=provenance, image_format=target
    )
    if source.lower() == target:
        assert stored.file.original is None
        assert read_bytes(folder / stored.file.file_name) == delivered
        return
    assert stored.file.original == (
        f".imagen/originals/abc/{stored.file.file_name}.{inspect_image(delivered).extension}"
    )
    assert read_bytes(folder.joinpath(*stored.file.original.split("/"))) == delivered
    converted = read_bytes(folder / stored.file.file_name)
    assert not has_content_credentials(converted)
    assert read_provenance(converted)["seed"] == provenance.seed
    assert stored.notes == ()
    assert len(files(folder)) == 2


def test_an_image_that_is_re_encoded_in_its_own_format_is_also_kept_as_delivered(folder):
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    stored = save_image(
        with_credentials(picture("JPEG", exif=upside_down)), folder=folder, stem="fox", image_format="jpeg"
    )
    assert (stored.file.file_name, stored.file.original) == ("fox.jpg", ".imagen/originals/fox.jpg.jpg")


def test_without_content_credentials_or_a_conversion_there_is_no_original(folder):
    signed = with_credentials(picture())
    assert save_image(picture(), folder=folder, stem="plain", image_format="jpeg").file.original is None
    assert save_image(signed, folder=folder, stem="kept", thumbnail_pixels=32).file.original is None
    assert files(folder) == [".imagen/thumbnails/kept.png.webp", "kept.png", "plain.jpg"]


def test_content_credentials_that_cannot_be_kept_are_reported_and_do_not_cost_the_image(tmp_path):
    (tmp_path / ".imagen").mkdir()
    (tmp_path / ".imagen" / "originals").touch()
    stored = save_image(with_credentials(picture()), folder=tmp_path, stem="fox", image_format="jpeg")
    assert (stored.file.file_name, stored.file.original) == ("fox.jpg", None)
    (note,) = stored.notes
    assert note.startswith("Its C2PA content credentials are lost: ")


def test_the_original_is_written_and_announced_before_its_conversion(folder):
    announced = []

    def record(file):
        announced.append((file, files(folder)))

    options = {"folder": folder, "stem": "fox", "owner": "abc", "image_format": "jpeg"}
    stored = save_image(with_credentials(picture()), **options, before_write=record)
    assert announced == [(stored.file, [".imagen/originals/abc/fox.jpg.png"])]


def test_an_original_never_replaces_that_of_another_owner(folder):
    options = {"folder": folder, "stem": "fox", "image_format": "jpeg", "may_replace": lambda _: False}
    first, second = (
        save_image(with_credentials(picture(size=size)), owner=owner, **options).file
        for size, owner in [((8, 8), "abc"), ((9, 9), "def")]
    )
    assert (first.file_name, second.file_name) == ("fox.jpg", "fox-def.jpg")
    for file, width in ((first, 8), (second, 9)):
        assert inspect_image(read_bytes(folder.joinpath(*file.original.split("/")))).width == width


def test_a_format_without_provenance_support_is_reported(folder, provenance):
    stored = save_image(picture("GIF"), folder=folder, stem="fox", provenance=provenance)
    assert stored.file.file_name == "fox.gif"
    assert "GIF is not supported" in stored.notes[0]


def test_an_avif_is_not_re_encoded_as_avif(folder, provenance):
    data = picture("AVIF")
    stored = save_image(data, folder=folder, stem="fox", provenance=provenance, image_format="avif")
    assert read_bytes(folder / "fox.avif") == data
    assert "AVIF is not supported" in stored.notes[0]


def test_an_existing_packet_is_carried_over_to_an_avif(folder, provenance):
    own = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"/></rdf:RDF></x:xmpmeta>"""
    stored = save_image(picture("WEBP", xmp=own), folder=folder, stem="fox", provenance=provenance, image_format="avif")
    assert stored.notes == ()
    data = read_bytes(folder / "fox.avif")
    assert b'xmp:Rating="5"' in data
    assert read_provenance(data)["seed"] == provenance.seed


def test_a_preview_that_cannot_be_written_does_not_cost_the_image(tmp_path):
    (tmp_path / ".imagen").touch()
    stored = save_image(picture(), folder=tmp_path, stem="fox", thumbnail_pixels=20)
    assert stored.file.thumbnail is None
    assert stored.notes[0].startswith("No preview:")
    assert (tmp_path / "fox.png").read_bytes() == picture()


@pytest.mark.parametrize("text", ["x", "é", "狐", "🦊"])
@pytest.mark.parametrize("image_format", [None, "jpeg", "avif"])
def test_the_longest_names_leave_room_for_extension_preview_and_collision_suffix(tmp_path, ti_key, text, image_format):
    fields = NameFields(
        ti_key=replace(ti_key, dag_id=text * 300, task_id=f"{text * 300}t", run_id=f"{text * 300}r"),
        index=0,
        prompt="",
        model="m",
        name=text * 400,
    )
    (stem,) = image_stems("{dag_id}{task_id}{run_id}{name}/{name}{dag_id}{task_id}{run_id}", [fields])
    assert max(len(part.encode()) for part in stem.split("/")) > 200
    options = {"folder": tmp_path, "stem": stem, "image_format": image_format, "thumbnail_pixels": 9}
    first = save_image(picture("BMP"), owner=ti_key.identity, **options)
    other = save_image(picture("BMP", size=(32, 32)), owner=ti_key.identity, may_replace=lambda _: False, **options)
    assert first.file.thumbnail is not None
    assert other.file.thumbnail is not None
    names = {first.file.file_name, first.file.thumbnail, other.file.file_name, other.file.thumbnail}
    assert set(files(tmp_path)) == names
    assert len(names) == 4


def test_many_files_leak_no_descriptors(tmp_path, ti_key):
    """Leaking one per file would crash a worker after about 1024 images."""

    def write_all(start: int) -> None:
        for number in range(start, start + 50):
            stored = save_image(
                picture(size=(8, 8)), folder=tmp_path, stem=f"{number}", owner=ti_key.identity, thumbnail_pixels=4
            )
            save_image(
                picture(size=(9, 9)),
                folder=tmp_path,
                stem=f"{number}",
                owner=ti_key.identity,
                may_replace=lambda _: False,
            )
            is_intact(tmp_path / stored.file.file_name, size=stored.file.bytes, sha256=stored.file.sha256)
            is_intact(tmp_path / stored.file.file_name, size=1, sha256=stored.file.sha256)
            read_bytes(tmp_path / f"{number}.txt")
            with pytest.raises(StorageError):
                save_image(picture(size=(8, 8)), folder=tmp_path / stored.file.file_name, stem="below-a-file")
            with pytest.raises(BadImageError):
                save_image(b"no picture", folder=tmp_path, stem="bad")
        made = manifest_line(ImageRecord(prompt_index=0), stored.file, ti_key=ti_key, created_at=datetime.now(UTC))
        write_manifest(tmp_path, ti_key=ti_key, lines=[made], failures=[FailureLine(prompt_index=0)])
        read_manifest(tmp_path)

    write_all(0)
    before = len(os.listdir("/proc/self/fd"))
    write_all(50)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_invalid_image_is_rejected_and_nothing_is_written(folder):
    with pytest.raises(BadImageError):
        save_image(picture()[:-30], folder=folder, stem="fox", thumbnail_pixels=20)
    with pytest.raises(BadImageError, match="at most 100"):
        save_image(picture(), folder=folder, stem="fox", max_pixels=100)
    assert files(folder) == []


def corrupt_pixels() -> bytes:
    """Return a PNG whose checksums are right, but whose pixel data ends too early."""
    data = picture()
    at = data.index(b"IDAT") - 4
    content = b"IDAT" + zlib.compress(bytes(100))
    part = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:at] + part + data[data.index(b"IEND") - 4 :]


@pytest.mark.parametrize(
    "options",
    [{"thumbnail_pixels": 20}, {"image_format": "webp"}, {"image_format": "jpeg", "thumbnail_pixels": 20}],
)
def test_an_image_that_cannot_be_decoded_is_an_error_and_not_a_note(folder, options):
    with pytest.raises(BadImageError, match="truncated or corrupt"):
        save_image(corrupt_pixels(), folder=folder, stem="fox", **options)
    assert files(folder) == []


@pytest.mark.parametrize("source", ["PNG", "JPEG", "GIF", "WEBP", "AVIF"])
@pytest.mark.parametrize("image_format", [None, "png", "jpeg", "webp"])
@pytest.mark.parametrize("thumbnail_pixels", [None, 20])
def test_an_image_is_decoded_at_most_once(tmp_path, monkeypatch, source, image_format, thumbnail_pixels):
    decoded = []
    real = ImageFile.ImageFile.load

    def load(self):
        if self.tile:
            decoded.append(self)
        return real(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    data = picture(source)
    decoded.clear()
    save_image(data, folder=tmp_path, stem="fox", image_format=image_format, thumbnail_pixels=thumbnail_pixels)
    is_needed = image_format not in (None, source.lower()) or thumbnail_pixels is not None
    assert len(decoded) == is_needed


def test_malformed_exif_costs_neither_the_image_nor_its_format(tmp_path):
    data = picture("WEBP", exif=b"Exif\0\0garbage")
    stored = save_image(data, folder=tmp_path, stem="fox", image_format="webp")
    assert (tmp_path / "fox.webp").read_bytes() == data
    assert stored.notes == ()
    stored = save_image(data, folder=tmp_path, stem="other", image_format="png", thumbnail_pixels=20)
    assert stored.file.file_name.startswith("other.")


def test_before_write_gets_the_final_record_before_anything_is_written(folder, provenance):
    announced = []

    def before_write(expected):
        assert files(folder) == []
        announced.append(expected)

    stored = save_image(
        picture(), folder=folder, stem="fox", provenance=provenance, thumbnail_pixels=20, before_write=before_write
    )
    assert announced == [replace(stored.file, thumbnail=None)]


def test_before_write_gets_the_new_name_when_the_first_is_taken(folder):
    save_image(picture(size=(20, 20)), folder=folder, stem="fox")
    announced = []

    def before_write(expected):
        assert files(folder) == ["fox.png"]
        announced.append(expected.file_name)

    stored = save_image(
        picture(), folder=folder, stem="fox", owner="me", may_replace=lambda _: False, before_write=before_write
    )
    assert announced == ["fox.png", "fox-me.png"]
    assert stored.file.file_name == "fox-me.png"


def test_an_image_that_may_replace_nothing_keeps_a_name_that_is_free(folder):
    stored = save_image(picture(), folder=folder, stem="fox", owner="me", may_replace=lambda _: False)
    assert stored.file.file_name == "fox.png"
    assert files(folder) == ["fox.png"]


def test_an_image_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        save_image(picture(), folder=tmp_path / "file", stem="fox")


def test_many_threads_can_save_at_once(folder, provenance):
    def save(number: int):
        data = picture("PNG", size=(40 + number, 30))
        return save_image(data, folder=folder, stem=f"{number}", provenance=provenance, thumbnail_pixels=16)

    with ThreadPoolExecutor(12) as pool:
        stored = list(pool.map(save, range(40)))
    assert [one.file.width for one in stored] == list(range(40, 80))
    assert len(files(folder)) == 80


def test_pillow_is_imported_only_when_an_image_is_processed():
    program = (
        "import sys, airflow_provider_imagen.storage.save_image, airflow_provider_imagen.storage.manifest\n"
        "found = {'PIL', 'fsspec', 'airflow', 'requests', 'upath'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_storing_an_image_as_delivered_with_its_provenance_does_not_import_pillow(tmp_path):
    for image_format in ("PNG", "JPEG", "WEBP", "GIF"):
        (tmp_path / f"delivered.{image_format}").write_bytes(picture(image_format))
    program = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from airflow_provider_imagen.storage.provenance import Provenance, read_provenance
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

provenance = Provenance(
    ti_key=TaskInstanceKey(dag_id="daily", task_id="draw", run_id="r"), created_at=datetime.now(UTC), prompt="a fox"
)
folder = Path(sys.argv[1])
for delivered in sorted(folder.glob("delivered.*")):
    save_image(delivered.read_bytes(), folder=folder / "stored", stem=delivered.suffix[1:], provenance=provenance)
stored = sorted((folder / "stored").iterdir())
assert [path.name for path in stored] == ["GIF.gif", "JPEG.jpg", "PNG.png", "WEBP.webp"], stored
assert all(read_provenance(path.read_bytes())["prompt"] == "a fox" for path in stored[1:])
assert "PIL" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
