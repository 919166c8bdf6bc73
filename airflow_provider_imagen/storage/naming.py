"""
Image file names: readable, safe on every file system, unique, and the same in every attempt.

Patterns use :meth:`str.format` syntax with a fixed set of placeholders (:data:`PLACEHOLDERS`). Values from prompts,
items and ids are sanitized first; the extension always matches the bytes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from itertools import count
from string import Formatter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLACEHOLDERS: Final[dict[str, str]] = {
    "dag_id": "id of the DAG",
    "task_id": "id of the task, with its groups",
    "run_id": "id of the DAG run",
    "map_index": "index of the mapped task instance, from 0; 0 if the task is not mapped",
    "identity": "ten-digit hash of DAG, task, run and map index",
    "name": "the item's own name, or its zero-padded index if it has none",
    "index": "index of the prompt in the task, from 0, zero-padded",
    "image": "index of the image among those of its prompt, from 0",
    "model": "model id",
    "seed": "seed sent with the request, or 'random' if there was none",
    "prompt": "beginning of the prompt",
    "extension": "extension of the image's format: png, jpg, webp …; only at the end of the pattern",
}
"""Placeholders of a file name pattern, with their meaning."""

DEFAULT_FILENAME: Final = "{task_id}-{name}-{image}-{identity}.{extension}"
"""
Default file name pattern.

``identity`` keeps runs, tasks and mapped task instances that share a folder from overwriting each other.
"""

MAX_COMPONENT_BYTES: Final = 250
"""
Maximum UTF-8 bytes of one part of a name.

File systems allow 255; five are reserved for the second extension of a preview or an original.
"""

_MAX_VALUE_BYTES: Final = 80
_MAX_PROMPT_BYTES: Final = 60
_LONGEST_EXTENSION: Final = ".webp"
_SPEC = r"[<>^]?0?\d{0,2}(\.\d{1,2})?[ds]?"
_IMAGE_EXTENSION = r"(?i)\.(png|jpe?g|webp|avif|gif|tiff?|bmp|svg)\Z"
_UNSAFE = re.compile(r"""[\s/\\<>:"'|?*#%&{}\[\]$!`^~;,]+""")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?\Z", re.IGNORECASE)
# Bidirectional overrides and isolates can disguise a name as another one ("gpj.exe").
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS = "\u200b\u200c\u200d\u2060\ufeff\ufe0e\ufe0f"


class NameFields(Struct, frozen=True, kw_only=True):
    """
    Placeholder values for one image.

    :param ti_key: the task instance
    :param index: index of the prompt in the task, from 0
    :param image: index of the image among those of its prompt, from 0
    :param prompt: the prompt as sent
    :param model: model id
    :param name: the prompt item's own name, ``None`` if it has none
    :param seed: the seed as sent, ``None`` if none was
    :param items: number of prompts in the task, at least 1; determines the padding of ``index``
    """

    ti_key: TaskInstanceKey
    index: int
    image: int = 0
    prompt: str = ""
    model: str = ""
    name: str | None = None
    seed: int | None = None
    items: int = 1


def image_name(pattern: str, *, fields: NameFields, extension: str) -> str:
    """
    Return the file name of one image, relative to its folder.

    :param pattern: text with :data:`PLACEHOLDERS`; ``/`` creates subfolders
    :param fields: the placeholder values
    :param extension: extension of the image's format, without the dot
    :raises InvalidArgumentsError: the pattern is invalid
    """
    return with_extension(_render(pattern, fields), extension)


def image_stems(pattern: str, items: Sequence[NameFields]) -> tuple[str, ...]:
    """
    Return unique names without extension for all images of a task.

    Names that differ only in case count as equal, as some file systems cannot tell them apart. The first of equal
    names stays, later ones get ``-2``, ``-3`` … This depends only on the order of the items.

    :param pattern: text with :data:`PLACEHOLDERS`; ``/`` creates subfolders
    :param items: the placeholder values, one per image, in prompt order
    :returns: one name per item, in the same order; :func:`with_extension` completes it
    :raises InvalidArgumentsError: the pattern is invalid
    """
    stems = [_render(pattern, fields) for fields in items]
    requested = {_fold(stem) for stem in stems}
    used: set[str] = set()
    counters: dict[str, int] = {}
    unique = []
    for stem in stems:
        key = _fold(stem)
        candidate = stem
        while _fold(candidate) in used or (candidate != stem and _fold(candidate) in requested):
            counters[key] = counters.get(key, 1) + 1
            candidate = append_to_stem(stem, f"-{counters[key]}")
        used.add(_fold(candidate))
        unique.append(candidate)
    return tuple(unique)


def with_extension(stem: str, extension: str) -> str:
    """Return a name from :func:`image_stems` with its extension, which is passed without the dot."""
    return f"{stem}.{extension}"


def literal_stem(name: str) -> str:
    """
    Return a safe form of a literal name (no placeholders) without its extension.

    :param name: ``/`` creates subfolders
    :raises InvalidArgumentsError: it does not name a file in its folder
    """
    pattern = name.replace("{", "{{").replace("}", "}}")
    try:
        return _render(pattern, NameFields(ti_key=TaskInstanceKey(dag_id="", task_id="", run_id=""), index=0))
    except InvalidArgumentsError as error:
        raise InvalidArgumentsError([Problem("name", name, problem.allowed) for problem in error.problems]) from None


def append_to_stem(stem: str, suffix: str) -> str:
    """Return a name from :func:`image_stems` with an ASCII suffix, shortened first if it would become too long."""
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{_cut(name, MAX_COMPONENT_BYTES - len(_LONGEST_EXTENSION) - len(suffix))}{suffix}"


def alternative_stems(stem: str, owner: str) -> Iterator[str]:
    """Yield the names to try for an image in turn, without end: the planned one first."""
    yield stem
    yield append_to_stem(stem, f"-{owner}")
    for number in count(2):
        yield append_to_stem(stem, f"-{owner}-{number}")


def check_pattern(pattern: str) -> None:
    """
    Raise if a file name pattern is invalid.

    :raises InvalidArgumentsError: a placeholder is unknown, or the pattern does not name a file in its folder
    """
    _render(pattern, NameFields(ti_key=TaskInstanceKey(dag_id="dag", task_id="task", run_id="run"), index=0))


def _render(pattern: str, fields: NameFields) -> str:
    text = _without_extension(pattern)
    values = _safe_values(fields)
    numbers = {
        "map_index": max(fields.ti_key.map_index, 0),
        "index": fields.index,
        "image": fields.image,
        "seed": fields.seed,
    }
    rendered: list[str] = []
    for literal, name, spec, conversion in _parse(pattern, text):
        if unicodedata.normalize("NFC", literal) != _clean_characters(literal) or "\\" in literal:
            raise _invalid(pattern, "backslashes and control characters are not allowed")
        rendered.append(unicodedata.normalize("NFC", literal))
        if name is None:
            continue
        if name not in values or conversion:
            allowed = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise _invalid(pattern, f"unknown placeholder {{{name}}}; allowed are {allowed}")
        if not spec:
            rendered.append(values[name])
            continue
        if not re.fullmatch(_SPEC, spec):
            raise _invalid(pattern, f"the format {spec!r} of {{{name}}} is not a width such as 04d or .20")
        number = None if spec.endswith("s") else numbers.get(name)
        if name == "seed" and number is None:
            rendered.append(values[name])  # the word "random", which has no number format
            continue
        try:
            rendered.append(format(values[name] if number is None else number, spec))
        except ValueError as error:
            raise _invalid(pattern, f"the format {spec!r} does not fit {{{name}}}: {error}") from None
    return "/".join(_safe_component(pattern, part) for part in "".join(rendered).split("/"))


def _parse(pattern: str, text: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(text))
    except ValueError as error:
        raise _invalid(pattern, f"{error}; write {{{{ for a literal brace") from None


def _without_extension(pattern: str) -> str:
    """Return the pattern without its extension (placeholder or literal), which depends on the bytes."""
    text = pattern.removesuffix(".{extension}")
    if text == pattern:
        text = re.sub(_IMAGE_EXTENSION, "", pattern)
    if "{extension}" in text.replace("{{extension}}", ""):
        raise _invalid(pattern, "{extension} is only allowed at the end, as .{extension}")
    return text


def _invalid(pattern: str, allowed: str) -> InvalidArgumentsError:
    return InvalidArgumentsError([Problem("filename", pattern, allowed)])


def _safe_values(fields: NameFields) -> dict[str, str]:
    """Return the placeholder values as text that is safe in a file name."""
    index = str(fields.index).zfill(max(3, len(str(fields.items - 1))))
    return {
        "dag_id": _safe_value(fields.ti_key.dag_id) or "dag",
        "task_id": _safe_value(fields.ti_key.task_id) or "task",
        "run_id": _safe_value(fields.ti_key.run_id) or "run",
        "map_index": str(max(fields.ti_key.map_index, 0)),
        "identity": fields.ti_key.identity,
        "name": _safe_value(fields.name or "") or index,
        "index": index,
        "image": str(fields.image),
        "model": _safe_value(fields.model) or "model",
        "seed": "random" if fields.seed is None else str(fields.seed),
        "prompt": _cut(_slug(fields.prompt[:1000]), _MAX_PROMPT_BYTES) or "untitled",
    }


def _safe_value(value: str) -> str:
    """Return a safe form of an id or name; a long one is shortened and gets a digest, so that it stays unique."""
    slug = _slug(value)
    if len(slug.encode()) <= _MAX_VALUE_BYTES:
        return slug
    digest = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{_cut(slug, _MAX_VALUE_BYTES - 9)}-{digest}"


def _slug(value: str) -> str:
    return _UNSAFE.sub("-", _clean_characters(value.replace("\n", " ").replace("\t", " "))).strip("-. ")


def _clean_characters(text: str) -> str:
    """Return text without control, unassigned and bidirectional characters; all letters and emoji stay."""
    kept = (
        character
        for character in unicodedata.normalize("NFC", text)
        if character not in _BIDI and unicodedata.category(character) not in ("Cc", "Cs", "Cn", "Zl", "Zp")
    )
    # Normalize again: dropping a character can join two others that have a composed form.
    return unicodedata.normalize("NFC", "".join(kept))


def _safe_component(pattern: str, part: str) -> str:
    """Return one part of the path in a form that every file system accepts; raise if nothing remains."""
    name = part.lstrip(". ").rstrip(". ")
    if not name:
        raise _invalid(pattern, "every part between slashes must be a name inside the folder")
    if _RESERVED.match(name):
        name = f"_{name}"
    limit = MAX_COMPONENT_BYTES - len(_LONGEST_EXTENSION)
    if len(name.encode()) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{_cut(name, limit - 11)}-{digest}"


def _cut(text: str, limit: int) -> str:
    """Return text shortened to a number of UTF-8 bytes, without splitting characters or leaving a trailing joiner."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[:limit].decode(errors="ignore").rstrip(_JOINERS + "-. ")


def _fold(stem: str) -> str:
    return unicodedata.normalize("NFC", stem.casefold())
