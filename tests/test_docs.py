"""The pages in docs/ match the code."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.sandbox.model_specs import all_models

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")}
SHOWN = [
    pytest.param(shown, name, id=name)
    for page in PAGES.values()
    for name, shown in re.findall(r"^<!-- file: (example_dags/\S+) -->\n```python\n(.+?)^```$", page, re.M | re.S)
]


@pytest.mark.parametrize(("shown", "name"), SHOWN)
def test_an_example_on_its_page_matches_its_file(shown: str, name: str) -> None:
    assert shown == (ROOT / name).read_text("utf-8").split('"""\n\n', 1)[1]  # without its docstring


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_resolve(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_is_valid_python(page: str) -> None:
    for snippet in re.findall(r"^```python\n(.+?)^```$", PAGES[page], re.M | re.S):
        compile(snippet, page, "exec")


def test_the_picture_book_costs_what_its_page_says() -> None:
    models = ("bytedance/seedream-v4-text-to-image", *["bytedance/seedream-v4-edit"] * 4)
    prices = [model.price.usd for each in models if (model := find_model(each)) and model.price]
    each, total = re.findall(r"\$(\d+\.\d+)", PAGES["docs/examples/picture-book.md"])
    assert set(prices) == {Decimal(each)}
    assert sum(prices) == Decimal(total)


def test_the_sample_costs_what_its_page_says() -> None:
    model = all_models()["imagen-3.0-generate-002"]
    price, sample, rest = map(Decimal, re.findall(r"\$(\d+\.\d+)", PAGES["docs/examples/sample-and-approve.md"]))
    assert (price, sample, rest) == (model.usd, 12 * model.usd, 188 * model.usd)
