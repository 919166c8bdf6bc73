"""Images and folders for the storage tests."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from io import BytesIO
from uuid import uuid4

import pytest
from PIL import Image

from airflow_provider_imagen.storage.png import PNG_SIGNATURE
from airflow_provider_imagen.storage.provenance import Provenance
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

MANIFEST = b"\0\0\1\x2djumb\0\0\0\x2djumdc2pa\0\x11\0\x10\x80\0\0\xaa\x008\x9bq\x03c2pa\0" + bytes(range(256))


def picture(image_format="PNG", size=(64, 48), mode="RGB", **options) -> bytes:
    """Return an image with a gradient and some noise, the same for the same arguments."""
    width, height = size
    image = Image.merge(
        "RGB",
        (
            Image.linear_gradient("L").resize(size),
            Image.radial_gradient("L").resize(size),
            Image.frombytes("L", size, bytes((x * 37 + y * 91) % 256 for y in range(height) for x in range(width))),
        ),
    ).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size))
    target = BytesIO()
    image.save(target, format=image_format, **options)
    return target.getvalue()


def pixels(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    with Image.open(BytesIO(data)) as image:
        return image.mode, image.size, image.tobytes()


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    target = BytesIO()
    image.save(target, format=image_format, **options)
    return target.getvalue()


def with_credentials(data: bytes) -> bytes:
    """Insert something shaped like a C2PA manifest where each format keeps it."""
    if data.startswith(PNG_SIGNATURE):
        block = len(MANIFEST).to_bytes(4, "big") + b"caBX" + MANIFEST
        block += zlib.crc32(b"caBX" + MANIFEST).to_bytes(4, "big")
        return data[:33] + block + data[33:]
    if data.startswith(b"\xff\xd8"):
        content = b"JP\0\1\0\0\0\1" + MANIFEST
        block = b"\xff\xeb" + (len(content) + 2).to_bytes(2, "big") + content
        return data[:20] + block + data[20:]
    if data.startswith(b"RIFF"):
        block = b"C2PA" + len(MANIFEST).to_bytes(4, "little") + MANIFEST + b"\0" * (len(MANIFEST) % 2)
        return b"RIFF" + (len(data) - 8 + len(block)).to_bytes(4, "little") + data[8:] + block
    uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    content = uuid + b"\0\0\0\0manifest\0" + bytes(8) + MANIFEST
    return data + (len(content) + 8).to_bytes(4, "big") + b"uuid" + content


@pytest.fixture
def ti_key() -> TaskInstanceKey:
    return TaskInstanceKey(dag_id="daily", task_id="draw", run_id="manual__2026-11-21T10:00:00+00:00")


@pytest.fixture
def provenance(ti_key) -> Provenance:
    return Provenance(
        ti_key=ti_key,
        created_at=datetime(2026, 11, 21, 10, 30, tzinfo=UTC),
        model="imagen-3.0-generate-002",
        prompt='a red fox\n\tin the <snow> & "ice" 🦊',
        enhanced_prompt="a very red fox",
        seed=4_294_967_295,
        parameters={"aspect_ratio": "1:1", "num_images": 2},
        inference_id="inf-1",
    )


@pytest.fixture
def memory_folder():
    """An empty folder of an in-memory object store."""
    from upath import UPath

    return UPath(f"memory://bucket-{uuid4().hex}/pictures")
