from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_imagen.cli import main

FOLDER = Path(__file__).parents[2] / "example_dags"
NAMES = sorted(path.stem for path in FOLDER.glob("imagen_*.py"))
READS = {
    "imagen_campaign": "tables/campaign.csv",
    "imagen_from_files": "tables/products.csv",
    "imagen_templates": "prompts/postcard.prompt",
}


def test_the_list_has_every_example_with_the_first_line_of_its_docstring(capsys):
    assert main(["examples"]) == 0
    lines = [
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip().startswith("imagen_")
    ]

    assert [name for name, _ in lines] == NAMES
    titles = {name: title.strip() for name, title in lines}
    assert titles["imagen_batch"] == "A table of prompts, a folder of pictures"
    assert not [title for title in titles.values() if title.startswith("#")]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_printed_as_it_is(name, capsys):
    assert main(["examples", name]) == 0
    shown = capsys.readouterr()

    assert shown.out == (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    file = READS.get(name)
    assert shown.err == (
        "" if file is None else f"It reads {file}: copy that from {FOLDER} into the folder of the DAG.\n"
    )


def test_no_file_that_an_example_reads_is_left_behind():
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*") if path.parent.name != "__pycache__"}
    assert files == set(READS.values())


def test_an_unknown_example_is_an_error_that_names_the_examples(capsys):
    assert main(["examples", "../../etc/passwd"]) == 2
    shown = capsys.readouterr()

    assert shown.out == ""
    assert "imagen_quickstart" in shown.err
