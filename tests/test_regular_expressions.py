"""No regular expression in the package takes more than linear time, whatever its input."""

from __future__ import annotations

import ast
import importlib
import re
import string
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import airflow_provider_imagen
from airflow_provider_imagen.api.json_body import find_string_fields
from airflow_provider_imagen.redaction import hide

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(airflow_provider_imagen.__file__).parent
METHODS = ("match", "fullmatch", "search", "sub", "findall", "finditer", "split")
BUILT_AT_RUN_TIME: set[str] = set()
"""Uses whose pattern is made of a value that is known only then."""

LENGTH = 20_000
SECONDS = 0.25
"""At this length, linear patterns take some milliseconds and quadratic ones a second or more."""


def regular_expressions() -> Iterator[Any]:
    """Yield every use of ``re`` in the package: the pattern, the method and the flags."""
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text()
        if "import re\n" not in source:
            continue
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        module = importlib.import_module(name)
        tree = ast.parse(source)
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            owner, method = call.func.value, call.func.attr
            if not (isinstance(owner, ast.Name) and owner.id == "re" and method in (*METHODS, "compile")):
                continue
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            try:
                pattern = eval(compile(ast.Expression(call.args[0]), "pattern", "eval"), dict(vars(module)))
            except NameError:
                BUILT_AT_RUN_TIME.add(f"{path.name}:{method}")
                continue
            flags = next((word.value for word in call.keywords if word.arg == "flags"), None)
            flags = flags or (call.args[1] if method == "compile" and len(call.args) > 1 else None)
            number = eval(compile(ast.Expression(flags), "flags", "eval"), {"re": re}) if flags else 0
            compiled = (
                next(
                    (node.targets[0] if isinstance(node, ast.Assign) else node.target)
                    for node in ast.walk(tree)
                    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is call
                ).id
                if method == "compile"
                else None
            )
            used = {method} if compiled is None else set(re.findall(rf"\b{compiled}\.({'|'.join(METHODS)})\(", source))
            for each in sorted(used or {"search"}):
                yield pytest.param(pattern, each, number, id=f"{where} {each}")


def pieces_of(pattern: str) -> set[str]:
    """Return the literal pieces of a pattern, with which a match can start or continue."""
    plain = re.sub(r"\\.|\(\?[a-zA-Z:<!=P]+|\[[^\]]*\]", " ", pattern)
    return {piece for piece in re.split(r"[^\w:/.@=<>&{%-]+", plain) if piece} | set(re.findall(r"\w", pattern))


def hostile_texts(pattern: str) -> Iterator[str]:
    marks = [*string.punctuation, " ", "\n", "\t", "0", "7", "a", "Z", "_", "é"]
    pieces = sorted(pieces_of(pattern))
    words = [*marks, *pieces, *(f"{piece}{mark}" for piece in pieces for mark in "a./= ")]
    words += [
        "a.",
        "a-",
        "a+",
        "a://",
        "http://",
        "https://a",
        "a:b@",
        "://",
        '"a',
        '\\"',
        "=a",
        "1x",
        "1:",
        "{{ ",
        "a=1&",
    ]
    for word in words:
        yield word * (LENGTH // len(word))
        yield f"{word * (LENGTH // len(word))}\x00"
    for first in pieces:
        for mark in "a.-:/@=\"' \\":
            yield first + mark * LENGTH
            yield f"a{first}{mark * LENGTH}"


@pytest.mark.parametrize(("pattern", "method", "flags"), regular_expressions())
def test_a_regular_expression_takes_linear_time(pattern: Any, method: str, flags: int) -> None:
    text_of = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    compiled = re.compile(pattern, flags)
    for text in hostile_texts(text_of):
        given: Any = text if isinstance(pattern, str) else text.encode("latin-1", "replace")
        started = time.process_time()
        if method in ("sub", "split", "findall"):
            compiled.subn("" if isinstance(pattern, str) else b"", given)
        elif method == "finditer":
            for _ in compiled.finditer(given):
                pass
        else:
            getattr(compiled, method)(given)
        assert time.process_time() - started < SECONDS, (method, text_of, text[:40])


@pytest.mark.timeout(60)
def test_patterns_built_at_run_time_are_known_and_take_linear_time() -> None:
    """Except the pattern of XMP attributes, whose input is one tag of an already parsed packet."""
    list(regular_expressions())
    assert {"redaction.py:compile", "json_body.py:findall", "xmp.py:finditer"} == BUILT_AT_RUN_TIME
    for text in hostile_texts("url k"):
        hide(text, "k" * 40)
        find_string_fields(text.encode(), ("url", "b64_json"))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>]+@",
        r"(?i)(https?://[^\s?#\"'<>]+)[?#][^\s\"'<>]*",
        r"(\w://[^\s/'\"]*:)[^\s/@'\"]*@",
    ],
)
def test_quadratic_patterns_are_detected(pattern: str) -> None:
    with pytest.raises(AssertionError, match="sub"):
        test_a_regular_expression_takes_linear_time(pattern, "sub", 0)
