"""What the verification of a delivered file promises, over many kinds of files of each format."""

from __future__ import annotations

import struct
import time
import zlib
from io import BytesIO

import pytest
from PIL import Image, ImageCms

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.inspect_image import inspect_image

from .conftest import picture, saved

SIZE = (41, 30)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
PADDING = (b"\0", bytes(512), b"\xff" * 100, b"\r\n", b"<!-- cached -->" * 20)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def interlaced_png(size=SIZE) -> bytes:
    """Return what Pillow cannot write: a grey PNG in the seven passes of Adam7."""
    width, height = size
    rows = b""
    for left, top, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        for y in range(top, height, down):
            rows += b"\0" + bytes((x * 3 + y * 5) % 256 for x in range(left, width, across))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def split_png() -> bytes:
    """Return a PNG with its pixel data in chunks of 50 bytes."""
    data = picture("PNG", size=SIZE)
    at = data.index(b"IDAT") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    content = data[at + 8 : at + 8 + length]
    parts = (chunk(b"IDAT", content[start : start + 50]) for start in range(0, length, 50))
    return data[:at] + b"".join(parts) + data[at + 12 + length :]


def small_screen_gif() -> bytes:
    """Return a GIF whose first image exceeds its screen."""
    data = picture("GIF", size=SIZE)
    return data[:6] + struct.pack("<HH", 9, 7) + data[10:]


def animation(image_format: str, **options) -> bytes:
    frames = [Image.open(BytesIO(picture("PNG", size=SIZE))).rotate(90 * number) for number in range(3)]
    return saved(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


CORPUS = {
    "PNG RGB": picture("PNG", size=SIZE),
    "PNG RGBA": picture("PNG", size=SIZE, mode="RGBA"),
    "PNG palette": saved(Image.open(BytesIO(picture("PNG", size=SIZE))).quantize(16), "PNG", transparency=0),
    "PNG grey": picture("PNG", size=SIZE, mode="L"),
    "PNG grey and alpha": picture("PNG", size=SIZE, mode="LA"),
    "PNG black and white": picture("PNG", size=SIZE, mode="1"),
    "PNG 16 bit": saved(Image.frombytes("I;16", SIZE, bytes(range(246)) * 10), "PNG"),
    "PNG interlaced": interlaced_png(),
    "PNG many IDAT": split_png(),
    "PNG animated": animation("PNG"),
    "PNG metadata": picture("PNG", size=SIZE, icc_profile=PROFILE, exif=oriented()),
    "JPEG 4:2:0": picture("JPEG", size=SIZE, subsampling="4:2:0"),
    "JPEG 4:4:4": picture("JPEG", size=SIZE, subsampling="4:4:4"),
    "JPEG grey": picture("JPEG", size=SIZE, mode="L"),
    "JPEG CMYK": picture("JPEG", size=SIZE, mode="CMYK"),
    "JPEG optimized": picture("JPEG", size=SIZE, optimize=True),
    "JPEG progressive": picture("JPEG", size=SIZE, progressive=True),
    "JPEG restarts": picture("JPEG", size=SIZE, restart_marker_blocks=1),
    "JPEG grey with restarts": picture("JPEG", size=SIZE, mode="L", restart_marker_blocks=2),
    "JPEG progressive with restarts": picture("JPEG", size=SIZE, progressive=True, restart_marker_blocks=1),
    "JPEG metadata": picture("JPEG", size=SIZE, icc_profile=PROFILE, exif=oriented(), xmp=XMP, comment=b"\xff\xd9"),
    "WEBP lossy": picture("WEBP", size=SIZE),
    "WEBP lossless": picture("WEBP", size=SIZE, lossless=True),
    "WEBP lossy with alpha": picture("WEBP", size=SIZE, mode="RGBA"),
    "WEBP lossless with alpha": picture("WEBP", size=SIZE, mode="RGBA", lossless=True),
    "WEBP animated": animation("WEBP"),
    "WEBP metadata": picture("WEBP", size=SIZE, icc_profile=PROFILE, exif=oriented(), xmp=XMP),
    "AVIF": picture("AVIF", size=SIZE),
    "AVIF with alpha": picture("AVIF", size=SIZE, mode="RGBA"),
    "AVIF metadata": picture("AVIF", size=SIZE, icc_profile=PROFILE, exif=oriented(), xmp=XMP),
    "AVIF animated": animation("AVIF"),
    "GIF": picture("GIF", size=SIZE),
    "GIF not interlaced": picture("GIF", size=SIZE, interlace=0, comment=b"; is no end"),
    "GIF animated": animation("GIF", loop=0),
    "GIF small screen": small_screen_gif(),
}
SMALL = [name for name, data in CORPUS.items() if len(data) < 6000]
LARGE = {
    "PNG": {},
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "JPEG restarts": {"restart_marker_rows": 1},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "AVIF": {},
    "GIF": {},
}


def large(name: str) -> bytes:
    return picture(name.partition(" ")[0], size=(250, 180), **LARGE[name])


def is_accepted(data: bytes) -> bool:
    try:
        inspect_image(data)
    except BadImageError:
        return False
    return True


@pytest.mark.parametrize("name", CORPUS)
def test_a_complete_file_is_accepted_with_the_size_pillow_reads(name):
    info = inspect_image(CORPUS[name])
    with Image.open(BytesIO(CORPUS[name])) as image:
        assert (info.width, info.height) == image.size == SIZE
    assert info.format == name.partition(" ")[0]


@pytest.mark.parametrize("name", CORPUS)
def test_bytes_after_the_end_of_the_file_are_ignored(name):
    data = CORPUS[name]
    assert all(inspect_image(data + padding) == inspect_image(data) for padding in PADDING)


@pytest.mark.parametrize("name", SMALL)
def test_a_file_truncated_at_any_length_is_rejected(name):
    data = CORPUS[name]
    assert [length for length in range(len(data)) if is_accepted(data[:length])] == []


@pytest.mark.parametrize("name", LARGE)
def test_a_larger_file_truncated_at_many_lengths_is_rejected(name):
    data = large(name)
    lengths = {*range(1, len(data), len(data) // 150), *range(len(data) - 40, len(data))}
    assert [length for length in lengths if is_accepted(data[:length])] == []


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("PNG")])
def test_a_single_changed_bit_anywhere_in_a_png_is_noticed(name):
    data = bytearray(CORPUS[name])
    accepted = []
    for place in range(len(data)):
        data[place] ^= 1 << place % 8
        if is_accepted(bytes(data)):
            accepted.append(place)
        data[place] ^= 1 << place % 8
    assert accepted == []


@pytest.mark.parametrize("name", [name for name in LARGE if name[:3] in ("PNG", "JPE", "GIF")])
def test_a_tail_of_zeros_instead_of_data_is_noticed(name):
    data = large(name)
    for length in (3, 512, 4096):
        assert not is_accepted(data[:-length] + bytes(length))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "WEBP lossless", "AVIF"])
def test_missing_data_in_the_middle_is_noticed(name):
    data = large(name)
    for length in (100, 1460, 4096):  # 1460: what a TCP segment usually carries
        start = len(data) // 2 - length // 2
        assert not is_accepted(data[:start] + data[start + length :])


def test_missing_data_is_noticed_in_a_jpeg_if_it_includes_a_restart_marker():
    data = large("JPEG restarts")
    at = data.index(b"\xff\xd3")
    assert not is_accepted(data[: at - 10] + data[at + 10 :])


@pytest.mark.parametrize("name", ["PNG", "JPEG restarts"])
def test_data_replaced_by_zeros_is_noticed(name):
    data = large(name)
    start = len(data) // 2
    assert not is_accepted(data[:start] + bytes(4096) + data[start + 4096 :])


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "WEBP", "WEBP lossless", "AVIF"])
def test_a_changed_byte_in_compressed_data_is_not_noticed_which_the_docs_say(name):
    data = bytearray(large(name))
    place = next(place for place in range(len(data) // 2, len(data)) if 1 < data[place] < 0xFE)
    data[place] ^= 1
    assert is_accepted(bytes(data))


def test_restart_markers_out_of_order_are_noticed():
    data = CORPUS["JPEG restarts"]
    with pytest.raises(BadImageError, match="restart markers"):
        inspect_image(data.replace(b"\xff\xd1", b"\xff\xd4", 1))


def test_a_restart_marker_at_the_very_end_which_some_encoders_write_is_accepted():
    data = CORPUS["JPEG restarts"]
    count = sum(data.count(bytes((0xFF, marker))) for marker in range(0xD0, 0xD8))
    assert is_accepted(data[:-2] + bytes((0xFF, 0xD0 + count % 8)) + data[-2:])


def junk_between_segments() -> bytes:
    data = CORPUS["JPEG 4:2:0"]
    at = data.index(b"\xff\xdb")
    return data[:at] + b"\0\0" + data[at:]


def unknown_interlacing() -> bytes:
    data = CORPUS["PNG interlaced"]
    return data[:8] + chunk(b"IHDR", data[16:28] + b"\2") + data[33:]


def stray_byte_in_gif() -> bytes:
    data = CORPUS["GIF"]
    return data[:-1] + b"\0" + data[-1:]


@pytest.mark.parametrize("make", [junk_between_segments, unknown_interlacing, stray_byte_in_gif])
def test_an_unusual_file_is_decoded_instead_of_rejected(make):
    data = make()
    assert (inspect_image(data).width, inspect_image(data).height) == SIZE
    damaged = [length for length in range(len(data)) if is_accepted(data[:length])]
    assert damaged == []


def test_a_jpeg_followed_by_further_images_is_accepted_and_its_truncation_rejected():
    frames = [Image.open(BytesIO(CORPUS["PNG RGB"])).rotate(90 * number) for number in range(2)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    first = data.index(b"\xff\xd9") + 2
    assert (inspect_image(data).format, inspect_image(data).width) == ("JPEG", SIZE[0])
    assert [length for length in range(first) if is_accepted(data[:length])] == []


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def inserted(name: str, marker: bytes, part: bytes, *, offset: int = 0) -> bytes:
    """Return a file of about 60 MB: one of the corpus, with a part repeated before a marker in it."""
    data = CORPUS[name]
    at = data.index(marker) + offset
    return data[:at] + part * (60_000_000 // len(part)) + data[at:]


HOSTILE = {
    "PNG chunks": (lambda: inserted("PNG RGB", b"IDAT", chunk(b"prVt", b""), offset=-4), "than 100,000 chunks"),
    "PNG length": (lambda: inserted("PNG RGB", b"IDAT", b"\x7f\xff\xff\xffIDAT", offset=-4), "no IEND"),
    "JPEG segments": (lambda: inserted("JPEG 4:2:0", b"\xff\xe0", b"\xff\xfe\0\2"), "than 100,000 segments"),
    "JPEG markers": (lambda: inserted("JPEG 4:2:0", b"\xff\xe0", b"\xff\x01"), "than 100,000 segments"),
    "JPEG fill bytes": (lambda: CORPUS["JPEG 4:2:0"][:-1] + b"\xff" * 60_000_000, "no end marker"),
    "JPEG scans": (
        lambda: inserted("JPEG progressive", b"\xff\xda", b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\0\1data"),
        "than 100 scans",
    ),
    "GIF blocks": (lambda: inserted("GIF animated", b"NETSCAPE", b"\1a", offset=11), "than 1,000,000 blocks"),
    "GIF extensions": (lambda: inserted("GIF animated", b"\x21\xff", b"\x21\xfe\0"), "than 1,000,000 blocks"),
    "GIF unknown bytes": (lambda: inserted("GIF animated", b"\x21\xff", b"a"), "than 1,000,000 blocks"),
    "WEBP chunks": (lambda: riff(CORPUS["WEBP lossy"][12:] + b"abcd\0\0\0\0" * 7_500_000), "than 100,000 chunks"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_of_60_mb_is_rejected_quickly(name):
    make, said = HOSTILE[name]
    data = make()
    start = time.process_time()
    with pytest.raises(BadImageError, match=said):
        inspect_image(data)
    assert time.process_time() - start < 3
