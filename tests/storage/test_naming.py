from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.storage.naming import (
    DEFAULT_FILENAME,
    PLACEHOLDERS,
    NameFields,
    check_pattern,
    image_name,
    image_stems,
    with_extension,
)
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

TI_KEY = TaskInstanceKey(dag_id="daily", task_id="draw", run_id="manual__2026-11-21T10:00:00+00:00")
FIELDS = NameFields(
    ti_key=TI_KEY, index=7, image=1, prompt="A red fox\nin the snow 🦊", model="google/imagen-4.0", seed=42, items=20
)
any_text = st.text(max_size=300)
ti_keys = st.builds(TaskInstanceKey, dag_id=any_text, task_id=any_text, run_id=any_text, map_index=st.integers(-1, 999))
all_fields = st.builds(
    NameFields,
    ti_key=ti_keys,
    index=st.integers(0, 9999),
    image=st.integers(0, 9),
    prompt=st.text(max_size=2000),
    model=any_text,
    name=st.none() | any_text,
    seed=st.none() | st.integers(0, 2**64),
    items=st.integers(1, 10_000),
)
patterns = st.sampled_from(
    [
        DEFAULT_FILENAME,
        "{prompt}.{extension}",
        "{name}",
        "{name}/{image}.png",
        "{dag_id}/{run_id}/{task_id}-{map_index}-{index}-{image}-{seed}-{model}-{prompt}-{name}.{extension}",
    ]
)


def test_the_default_name_is_readable():
    assert re.fullmatch(r"draw-007-1-[0-9a-f]{10}\.png", image_name(DEFAULT_FILENAME, fields=FIELDS, extension="png"))


def test_an_items_own_name_is_used():
    named = replace(FIELDS, name="Rotfüchsin №1")
    assert image_name("{name}.{extension}", fields=named, extension="png") == "Rotfüchsin-№1.png"


def test_every_documented_placeholder_works():
    for name in PLACEHOLDERS:
        assert image_name(f"x.{{{name}}}", fields=FIELDS, extension="webp").startswith("x.")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{prompt}", "A-red-fox-in-the-snow-🦊.webp"),
        ("{prompt:.5}", "A-red.webp"),
        ("{index:05d}_{image}", "00007_1.webp"),
        ("{index}", "007.webp"),
        ("{model}-{seed}", "google-imagen-4.0-42.webp"),
        ("{seed:06d}", "000042.webp"),
        ("a/{name}/b {{x}}.{extension}", "a/007/b {x}.webp"),
        ("fixed.PNG", "fixed.webp"),
        ("v1.2", "v1.2.webp"),
        ("{run_id}", "manual__2026-11-21T10-00-00+00-00.webp"),
        ("{map_index}", "0.webp"),
    ],
)
def test_a_pattern_becomes_a_file_name(pattern, name):
    assert image_name(pattern, fields=FIELDS, extension="webp") == name


def test_a_missing_seed_is_written_as_random():
    assert image_name("{seed}", fields=replace(FIELDS, seed=None), extension="png") == "random.png"
    assert image_name("{seed:06d}", fields=replace(FIELDS, seed=None), extension="png") == "random.png"


@pytest.mark.parametrize(
    "pattern",
    [
        "{unknown}",
        "{prompt.__class__}",
        "{prompt[0]}",
        "{}",
        "{0}",
        "{prompt!r}",
        "{prompt",
        "prompt}",
        "{index:999999999d}",
        "{index:{image}}",
        "{prompt:x}",
        "{extension}/{name}",
        "",
        ".{extension}",
        "/absolute",
        "../escape",
        "a/../b",
        "a//b",
        "folder/",
        "a\\b",
        "a\nb",
        "a\x00b",
    ],
)
def test_an_invalid_pattern_is_rejected_before_spending(pattern):
    with pytest.raises(InvalidArgumentsError) as caught:
        check_pattern(pattern)
    assert caught.value.problems[0].field == "filename"


def test_the_error_lists_the_allowed_placeholders():
    with pytest.raises(InvalidArgumentsError) as caught:
        check_pattern("{promt}.png")
    assert "{promt}" in str(caught.value)
    assert all(f"{{{name}}}" in str(caught.value) for name in PLACEHOLDERS)


@pytest.mark.parametrize("name", ["con", "NUL", "aux.txt", "COM1", "lpt9."])
def test_names_reserved_by_windows_are_avoided(name):
    assert image_name("{name}", fields=replace(FIELDS, name=name), extension="png").startswith("_")


@pytest.mark.parametrize(
    "name", ["..", "../../etc/passwd", "/etc/passwd", "C:\\x", "~root", "..\\..\\x", ".hidden", "\u202egnp.exe", "-"]
)
def test_a_name_cannot_escape_the_folder(name, tmp_path):
    made = image_name("{name}.{extension}", fields=replace(FIELDS, name=name), extension="png")
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert not made.startswith((".", "-", "~"))
    assert "\u202e" not in made


def test_letters_and_emoji_of_every_script_are_kept():
    family = "👩‍👩‍👧 Ölförderung 狐 ليث"
    made = image_name("{name}", fields=replace(FIELDS, name=unicodedata.normalize("NFD", family)), extension="png")
    assert made == "👩‍👩‍👧-Ölförderung-狐-ليث.png"


@settings(max_examples=300, deadline=None)
@given(pattern=patterns, fields=all_fields, extension=st.sampled_from(["png", "jpg", "webp", "avif", "tiff"]))
def test_every_name_is_safe_on_every_system(pattern, fields, extension):
    name = image_name(pattern, fields=fields, extension=extension)
    assert name == unicodedata.normalize("NFC", name)
    assert not Path(name).is_absolute()
    for part in name.split("/"):
        assert part not in ("", ".", "..")
        assert len(f"{part}.webp".encode()) <= 255
        assert not part.startswith(".")
        assert not part.endswith((".", " "))
        assert not set(part) & set('\\<>:"|?*')
        assert all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in part)
    assert name.count("/") == pattern.count("/")
    assert name.endswith(f".{extension}")


@settings(max_examples=200, deadline=None)
@given(pattern=patterns, items=st.lists(all_fields, max_size=30))
def test_no_two_images_of_a_task_share_a_name(pattern, items):
    items = items + items[:5]
    stems = image_stems(pattern, items)
    assert len({unicodedata.normalize("NFC", stem.casefold()) for stem in stems}) == len(items)
    assert stems == image_stems(pattern, items)
    for stem in stems:
        assert all(len(f"{part}.avif.webp".encode()) <= 255 for part in stem.split("/"))


def test_colliding_names_are_numbered_around_names_already_taken():
    items = [replace(FIELDS, name=name) for name in ("cat", "Cat", "cat", "cat-2", "cat")]
    assert image_stems("{name}", items) == ("cat", "Cat-3", "cat-4", "cat-2", "cat-5")


def test_a_name_does_not_depend_on_the_format_of_the_bytes():
    (stem,) = image_stems(DEFAULT_FILENAME, [FIELDS])
    assert with_extension(stem, "jpg") == image_name(DEFAULT_FILENAME, fields=FIELDS, extension="jpg")


@settings(max_examples=200, deadline=None)
@given(one=ti_keys, other=ti_keys, fields=all_fields)
def test_the_default_keeps_runs_and_mapped_tasks_apart(one, other, fields):
    first = image_name(DEFAULT_FILENAME, fields=replace(fields, ti_key=one), extension="png")
    second = image_name(DEFAULT_FILENAME, fields=replace(fields, ti_key=other), extension="png")
    assert (first == second) == (one == other)


def test_long_names_that_differ_only_at_their_end_stay_different():
    one, two = (image_name("{name}", fields=replace(FIELDS, name="x" * 200 + end), extension="png") for end in "ab")
    assert one != two
