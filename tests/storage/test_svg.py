from __future__ import annotations

import time

import pytest

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.svg import read_svg_size

NS = "xmlns='http://www.w3.org/2000/svg'"
SVG = f"<svg {NS} width='1024' height='768'><rect width='9' height='9'/></svg>".encode()


@pytest.mark.parametrize(
    ("root", "size"),
    [
        ("width='1024' height='768'", (1024, 768)),
        ("width='1024px' height=' 768.4px '", (1024, 768)),
        ("width='1in' height='2.54cm'", (96, 96)),
        ("width='100%' height='100%' viewBox='0 0 2048 1024'", (2048, 1024)),
        ("viewBox='0,0, 300.6,.9'", (301, 1)),
        ("width='640' viewBox='0 0 1 1'", (1, 1)),
        ("", (0, 0)),
        ("width='0' height='5'", (0, 0)),
        ("width='-5' height='5'", (0, 0)),
        ("width='1e400' height='nan'", (0, 0)),
        ("width='99999999999999999999' height='10'", (0, 0)),
        ("viewBox='a b c d'", (0, 0)),
        ("viewBox='0 0 5'", (0, 0)),
    ],
)
def test_the_size_is_the_one_the_svg_declares(root, size):
    info = inspect_image(f"<svg {NS} {root}><g/></svg>".encode(), accept_svg=True)
    assert (info.format, info.mime_type, info.extension) == ("SVG", "image/svg+xml", "svg")
    assert (info.width, info.height) == size


@pytest.mark.parametrize(
    "data",
    [
        SVG,
        b"<?xml version='1.0' encoding='UTF-8' standalone='no'?>\n<!-- made by a model -->\n" + SVG,
        b"\xef\xbb\xbf" + SVG,
        b"\n  " + SVG,
        SVG + b"\n",
        SVG + bytes(512),
        SVG + b"\0" * 5 + b"anything <at> all",
        SVG + SVG,
        b"<?xml version='1.0' encoding='UTF-16'?>".decode().encode("utf-16") + SVG.decode().encode("utf-16")[2:],
        SVG.decode().encode("utf-16") + bytes(64),
        b"<?xml version='1.0' encoding='iso-8859-1'?>" + SVG.replace(b"<rect", b"<!-- \xe4 --><rect"),
        b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd'>" + SVG,
        b"<!DOCTYPE svg [<!ENTITY ns_svg 'http://www.w3.org/2000/svg'>]>"
        + SVG.replace(b"<rect", b"<rect id='&ns_svg;'"),
        SVG.replace(b"<svg", b"<s:svg xmlns:s='x'").replace(b"</svg", b"</s:svg"),
        b"<!--" + b"x" * 100_000 + b"-->" + SVG,
        SVG.replace(b"<rect", b"<script>alert(1)</script><rect"),
    ],
)
def test_every_form_of_a_complete_svg_is_accepted(data):
    assert read_svg_size(data) == (1024, 768)


def test_a_large_svg_is_accepted_and_a_truncated_one_is_not():
    large = SVG.replace(b"<rect", b"<path d='" + b"M1 1" * 3_000_000 + b"'/><rect")
    assert read_svg_size(large) == read_svg_size(large + bytes(100)) == (1024, 768)
    with pytest.raises(BadImageError, match="truncated"):
        read_svg_size(large[:-4])


@pytest.mark.parametrize("missing", range(1, 35))
def test_a_truncated_svg_is_an_error(missing):
    with pytest.raises(BadImageError, match="truncated"):
        read_svg_size(SVG[:-missing])


def test_the_end_of_a_nested_svg_is_not_the_end():
    inner = SVG.replace(b"<rect", b"<svg><g/></svg><rect")
    with pytest.raises(BadImageError, match="truncated"):
        read_svg_size(inner[: inner.index(b"<rect")])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<",
        b"<html><svg/></html>",
        b"<!doctype html><svg></svg>",
        b"<?xml version='1.0'?><Error>svg</Error>",
        b"{'svg': 1}",
        b"\x89PNG\r\n<svg/>",
        b"\xff\xfe<\0",
        b"<a><svg/></a>",
        b"<html>" + b"<a>" * 4_000_000,
    ],
)
def test_other_content_is_not_an_svg(data):
    assert read_svg_size(data) is None


def test_entity_expansion_is_bounded():
    names = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
    laughs = f'<!DOCTYPE svg [<!ENTITY a0 "ha">{names}]><svg id="&a9;">&a9;</svg>'.encode()
    many = f'<!DOCTYPE svg [<!ENTITY a "{"x" * 900}">]><svg><g id="{"&a;" * 100_000}"/></svg>'.encode()
    external = b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'
    started = time.monotonic()
    for data in (laughs, many):
        with pytest.raises(BadImageError):
            inspect_image(data, accept_svg=True)
    assert read_svg_size(external) == (0, 0)  # the entity is not fetched
    assert time.monotonic() - started < 5


def test_svg_is_accepted_only_on_request():
    """Models do not accept SVG as an input image."""
    with pytest.raises(BadImageError, match="SVG"):
        inspect_image(SVG)


@pytest.mark.parametrize("options", [{}, {"image_format": "webp", "thumbnail_pixels": 64}])
def test_a_paid_svg_is_stored_unchanged(tmp_path, provenance, options):
    kept = save_image(SVG, folder=tmp_path, stem="plane", provenance=provenance, **options)
    file = kept.file
    assert (file.file_name, file.mime_type, file.width, file.height) == ("plane.svg", "image/svg+xml", 1024, 768)
    assert (tmp_path / "plane.svg").read_bytes() == SVG
    assert file.thumbnail is None
    notes = " ".join(kept.notes)
    assert "provenance" in notes
    assert ("Kept as SVG" in notes) == ("No preview" in notes) == bool(options)


def test_the_pixel_limit_does_not_apply_to_an_svg(tmp_path):
    vast = SVG.replace(b"1024", b"200000").replace(b"768", b"200000")
    assert save_image(vast, folder=tmp_path, stem="vast", max_pixels=100).file.width == 200_000
