"""The cache of previews on the web server's disk."""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.plugins.gallery.files import FileUnavailableError
from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache

if TYPE_CHECKING:
    from pathlib import Path


def _image_file(number: int) -> tuple[str, bytes]:
    target = BytesIO()
    Image.new("RGB", (600, 300), (number % 256, 0, 0)).save(target, format="PNG")
    return hashlib.sha256(target.getvalue()).hexdigest(), target.getvalue()


def test_all_processes_share_a_preview(tmp_path: Path) -> None:
    digest, data = _image_file(1)
    made = ThumbnailCache(tmp_path / "previews").make(digest, data)

    assert ThumbnailCache(tmp_path / "previews").get(digest) == made
    with Image.open(BytesIO(made)) as preview:
        assert preview.size == (384, 192)


@pytest.mark.slow
def test_the_folder_stays_below_its_limit_and_keeps_recently_used_previews(tmp_path: Path) -> None:
    cache = ThumbnailCache(tmp_path / "previews", max_bytes=10_000)
    first, data = _image_file(0)
    cache.make(first, data)
    for number in range(1, 129):  # the last write prunes the folder
        digest, data = _image_file(number)
        cache.make(digest, data)
        os.utime(next((tmp_path / "previews").glob(f"{digest}*")), (number, number))
        assert cache.get(first) is not None
    sizes = [path.stat().st_size for path in (tmp_path / "previews").iterdir()]

    assert len(sizes) < 129
    assert sum(sizes) <= 10_000


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    digest, data = _image_file(1)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    for name in ("open", "link"):
        cache = ThumbnailCache(tmp_path / name)
        assert cache.make(digest, data)
        assert cache.get(digest) is None
        assert list((tmp_path / name).iterdir()) == []


def test_a_name_that_is_not_a_digest_accesses_no_file(tmp_path: Path) -> None:
    cache = ThumbnailCache(tmp_path / "previews")
    (tmp_path / "secret-384.webp").write_bytes(b"secret")

    assert cache.get("../secret") is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_very_large_image_is_not_decoded_for_a_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    target = BytesIO()
    Image.new(mode, (9459, 9459)).save(target, format="PNG")
    data = target.getvalue()

    def refuse(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(FileUnavailableError, match="too large"):
        ThumbnailCache(tmp_path / "previews").make(hashlib.sha256(data).hexdigest(), data)


def test_an_image_with_much_metadata_has_a_preview(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    target = BytesIO()
    Image.new("RGB", (600, 300)).save(target, format="PNG", pnginfo=text)
    data = target.getvalue()

    assert ThumbnailCache(tmp_path / "previews").make(hashlib.sha256(data).hexdigest(), data)


def test_a_vector_image_has_no_preview(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailableError, match="vector"):
        ThumbnailCache(tmp_path / "previews").make("0" * 64, b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def test_a_file_that_is_not_an_image_has_no_preview(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailableError):
        ThumbnailCache(tmp_path / "previews").make("0" * 64, b"<svg onload=alert(1)>")
