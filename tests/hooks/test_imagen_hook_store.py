"""Storing an image with the hook alone, outside any task."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from io import BytesIO

import pytest
from PIL import Image

from airflow_provider_imagen.exceptions import BadImageError, InvalidArgumentsError, StorageError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.storage.provenance import read_provenance


@pytest.fixture
def hook(imagen_connection):
    return ImagenHook(imagen_connection)


@pytest.fixture
def moon():
    drawn = BytesIO()
    Image.radial_gradient("L").save(drawn, format="PNG")
    return drawn.getvalue()


def test_without_a_name_the_same_bytes_get_the_same_file(hook, moon, tmp_path):
    first = hook.store(moon, folder=str(tmp_path))
    assert hook.store(moon, folder=str(tmp_path))["path"] == first["path"]
    assert first["file_name"] == f"{hashlib.sha256(moon).hexdigest()[:16]}.png"
    assert (first["width"], first["height"]) == (256, 256)


def test_a_file_of_the_same_name_is_replaced(hook, moon, tmp_path):
    (tmp_path / "moon.png").write_bytes(b"old")
    record = hook.store(moon, folder=str(tmp_path), name="moon.jpg", provenance=False)
    assert record["file_name"] == "moon.png"
    assert (tmp_path / "moon.png").read_bytes() == moon


def test_an_image_is_marked_as_generated_only_if_the_caller_says_so(hook, moon, tmp_path):
    hook.store(moon, folder=str(tmp_path), name="photo", provenance={"camera": "mine"})
    provenance = read_provenance((tmp_path / "photo.png").read_bytes())
    assert provenance == {"creator_tool": "airflow-provider-imagen", "parameters": {"camera": "mine"}}


def test_an_unknown_source_type_is_rejected_before_anything_is_downloaded(hook, sandbox, tmp_path):
    provenance = {"digital_source_type": "photo"}
    with pytest.raises(InvalidArgumentsError, match=r"digital_source_type'\]='photo'.*digitalCapture"):
        hook.store(f"{sandbox.cdn_url}/a.png", folder=str(tmp_path), provenance=provenance)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["path", "width", "height", "mime_type", "bytes", "sha256", "url", "file_name"])
def test_the_record_describes_the_stored_file_whatever_the_provenance_says(hook, moon, tmp_path, field):
    plain = hook.store(moon, folder=str(tmp_path), name="moon", provenance={"camera": 1024})
    marked = hook.store(moon, folder=str(tmp_path), name="moon", provenance={field: 1024})
    assert read_provenance((tmp_path / "moon.png").read_bytes())["parameters"] == {field: 1024}
    other = ("sha256", "bytes", "created_at")  # the parameter is part of the file
    assert {**marked, **dict.fromkeys(other)} == {**plain, **dict.fromkeys(other)}
    assert marked["sha256"] == hashlib.sha256((tmp_path / "moon.png").read_bytes()).hexdigest()


def test_values_of_the_provenance_are_returned_as_given(hook, moon, tmp_path):
    class Text(str):
        """A subclass of ``str``, like NumPy's."""

    given = {"model": Text("m"), "prompt": Text("a moon"), "usd": Decimal("0.04")}
    record = hook.store(moon, folder=str(tmp_path), provenance=given)
    assert {name: record[name] for name in given} == given


@pytest.mark.parametrize("name", ["", "/", "..", "a/../b", "tab\t"])
def test_an_invalid_name_is_rejected_before_anything_is_downloaded(hook, sandbox, tmp_path, name):
    with pytest.raises(InvalidArgumentsError) as caught:
        hook.store(f"{sandbox.cdn_url}/x.png", folder=str(tmp_path), name=name)
    assert [problem.field for problem in caught.value.problems] == ["name"]
    assert sandbox.seen() == []


def test_a_name_with_braces_is_used_as_it_is(hook, moon, tmp_path):
    assert hook.store(moon, folder=str(tmp_path), name="{moon}")["file_name"] == "{moon}.png"


def test_bytes_that_are_not_an_image_are_rejected(hook, tmp_path):
    with pytest.raises(BadImageError):
        hook.store(b"no picture", folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(hook, moon, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        hook.store(moon, folder=str(tmp_path / "file"))
