"""``airflow-imagen demo --prompts-file``: encodings and byte order marks are not part of the prompts."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from airflow_provider_imagen.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = "Ein Fuchs, größer\r\n\r\n  A crow \r\n"
PROMPTS = ["Ein Fuchs, größer", "A crow"]
MARK = "\ufeff"


@pytest.fixture(params=["file", "stdin"])
def read(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], object]:
    """Run the command with these bytes as its prompts file, and return the prompts it reads."""

    def run(data: bytes) -> object:
        painted: list[str] = []
        monkeypatch.setattr(
            "airflow_provider_imagen.demo.run_demo", lambda *, prompts, **_: painted.extend(prompts) or 0
        )
        path = tmp_path / "prompts.txt"
        path.write_bytes(data)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        status = main(["demo", "--prompts-file", str(path) if request.param == "file" else "-"])
        return painted if status == 0 else status

    return run


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_encodings_of_windows_are_read(read: Callable[[bytes], object], encoding: str) -> None:
    assert read(TEXT.encode(encoding)) == PROMPTS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_not_part_of_a_prompt(read: Callable[[bytes], object], encoding: str) -> None:
    assert read((MARK + TEXT).encode(encoding)) == PROMPTS


def test_concatenated_files_can_have_marks_in_the_middle(read: Callable[[bytes], object]) -> None:
    assert read("A fox\n".encode("utf-8-sig") + "A crow\n".encode("utf-8-sig")) == ["A fox", "A crow"]


@pytest.mark.parametrize("data", [b"", MARK.encode(), (MARK + "\r\n").encode()])
def test_a_byte_order_mark_alone_is_not_a_prompt(read: Callable[[bytes], object], data: bytes) -> None:
    assert read(data) == 2


def test_other_encodings_are_an_error(read: Callable[[bytes], object], capsys: pytest.CaptureFixture[str]) -> None:
    assert read("größer".encode("latin-1")) == 2
    assert "--prompts-file" in capsys.readouterr().err
