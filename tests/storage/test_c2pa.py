"""Manifests that a real tool signed are in ``tests/c2pa``."""

from __future__ import annotations

import zlib

import pytest

from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.png import PNG_SIGNATURE

from .conftest import MANIFEST, picture, with_credentials

FORMATS = ["PNG", "JPEG", "WEBP", "AVIF"]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:p="http://c2pa.org/manifest"><metadata>{}</metadata></svg>'


def gif(application: bytes) -> bytes:
    plain = picture("GIF")
    return plain[:-1] + b"\x21\xff\x0b" + application + b"\x04jumb\0" + plain[-1:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def jpeg(*segments: bytes) -> bytes:
    plain = picture("JPEG")
    return plain[:20] + b"".join(segments) + plain[20:]


def png(kind: bytes, content: bytes) -> bytes:
    plain = picture("PNG")
    chunk = len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    return plain[:33] + chunk + plain[33:]


@pytest.mark.parametrize("image_format", FORMATS)
def test_credentials_are_found_where_the_format_keeps_them(image_format):
    plain = picture(image_format)
    assert not has_content_credentials(plain)
    assert has_content_credentials(with_credentials(plain))


@pytest.mark.parametrize(
    "data",
    [
        gif(b"C2PA_GIF\x01\x00\x00"),
        picture("TIFF", tiffinfo={0xCD41: MANIFEST}),
        picture("TIFF", tiffinfo={0xCD41: MANIFEST}, big_tiff=True),
        SVG.format("<p:manifest>AAAA</p:manifest>").encode(),
        SVG.format("<p:manifest>AAAA</p:manifest>").encode("utf-16"),
        jpeg(segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\1jumb" + bytes(8) + MANIFEST[8:])),  # with a longer length
        jpeg(segment(0xEB, b"HDR_RI ver=11"), segment(0xEB, b"JP\0\1\0\0\0\1" + MANIFEST)),
    ],
    ids=["gif", "tiff", "bigtiff", "svg", "utf-16 svg", "long jumbf", "after another APP11 segment"],
)
def test_credentials_are_found_in_other_formats_and_unusual_places(data):
    assert has_content_credentials(data)


@pytest.mark.parametrize(
    "data",
    [
        png(b"tEXt", b"Comment\0caBX" + MANIFEST),
        png(b"prVt", b"\0\0\0\0caBX" + MANIFEST),
        picture("JPEG", comment=b"JP\0\1\0\0\0\1" + MANIFEST),
        jpeg(segment(0xEB, b"JP\0\1\0\0\0\1" + MANIFEST.replace(b"jumdc2pa", b"jumdjson") + b"c2pa")),
        jpeg(segment(0xEC, b"JP\0\1\0\0\0\1" + MANIFEST)),
        picture("WEBP", exif=b"Exif\0\0C2PA" + MANIFEST),
        gif(b"XMP DataXMP") + b"\x21\xff\x0bC2PA_GIF\x01\x00\x00",
        picture("TIFF", tiffinfo={0x010E: "c2pa jumb"}),
        SVG.format("<manifest/>&lt;p:manifest&gt;<!-- <p:manifest> -->").encode(),
    ],
    ids=[
        "text",
        "other chunk",
        "comment",
        "other jumbf",
        "other segment",
        "exif",
        "after gif",
        "tiff text",
        "svg text",
    ],
)
def test_text_that_looks_like_credentials_is_not_mistaken_for_them(data):
    assert not has_content_credentials(data)


@pytest.mark.parametrize("image_format", [*FORMATS, "GIF", "TIFF", "BMP"])
def test_a_file_cut_off_anywhere_is_no_error(image_format):
    data = picture(image_format, size=(8, 8))
    data = with_credentials(data) if image_format in FORMATS else data
    assert {has_content_credentials(data[:length]) for length in range(min(len(data), 600))} <= {True, False}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II\x2a\x00\xff\xff\xff\xff",
        b"MM\x00\x2b\x00\x08\x00\x00" + b"\xff" * 8,
        b"II\x2b\x00\x08\x00\x00\x00" + (16).to_bytes(8, "little") + b"\xff" * 8,
        PNG_SIGNATURE + bytes(12) * 100_001,
        b"\0\0\0\0ftypavif",
        b'<!DOCTYPE svg [<!ENTITY a "' + b"a" * 9_000 + b'">]><svg>&a;</svg>',
    ],
    ids=["empty", "tiff offset", "bigtiff offset", "tiff count", "png chunks", "empty box", "entities"],
)
def test_a_malformed_file_has_no_credentials(data):
    assert not has_content_credentials(data)
