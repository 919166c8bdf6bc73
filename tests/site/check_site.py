"""
The built documentation site, in the folder ``$IMAGEN_SITE``, and the README on the package index.

The build itself fails for broken links to pages and headings, and for pages in no navigation.
"""

from __future__ import annotations

import inspect
import os
import re
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from readme_renderer import markdown

from airflow_provider_imagen import exceptions
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox.faults import KINDS

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ["IMAGEN_SITE"])
PAGES = sorted(SITE.rglob("*.html"))
LOADING = {"img", "script", "iframe", "source", "video", "audio", "embed"}
MODULES = [
    "operators.imagen",
    "decorators.imagen",
    "hooks.imagen",
    "policies.retry",
    "notifications.imagen",
    "notifications.message",
    "exceptions",
    "review",
    "testing",
    "sandbox",
    "sandbox.faults",
]


class Addresses(HTMLParser):
    """The addresses on a page: what the browser loads by itself, and where links in the text lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values["id"] or ""} if "id" in values else set()
        if tag in LOADING or (
            tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "modulepreload")
        ):
            self.loaded += [value for name in ("src", "href", "srcset") if (value := values.get(name))]
        elif tag == "a" and (href := values.get("href")):
            self.links.append(href)


@cache
def addresses(page: Path) -> Addresses:
    parser = Addresses()
    parser.feed(page.read_text("utf-8"))
    return parser


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(SITE)) for page in PAGES])
def test_a_page_loads_nothing_from_elsewhere_and_has_no_broken_link(page: Path) -> None:
    found = addresses(page)
    assert [each for each in found.loaded if urlsplit(each).netloc] == []
    for link in found.links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), link
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in addresses(target).ids, link


@pytest.mark.parametrize("style", sorted(SITE.rglob("*.css")), ids=lambda path: path.name)
def test_a_style_loads_nothing_from_elsewhere(style: Path) -> None:
    assert re.findall(r"(?:url\(|@import\s+)['\"]?(?:https?:)?//[^)'\"]+", style.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("question", "page", "heading"),
    [
        ("How do I install it on my Airflow?", "start/install.html", "Helm chart"),
        ("What will a night cost, and how do I cap it?", "guides/choose-a-model.html", "What a night costs"),
        ("What will a night cost, and how do I cap it?", "guides/budgets.html", "cap what images may cost"),
        ("What did images cost this month", "guides/bill.html", "What was charged"),
        ("How does a person choose images", "guides/review.html", "Mark images on the review page"),
        ("What happens on a retry?", "operations/guarantees.html", "What a retry does"),
        ("Why is my task red although there are images?", "operations/troubleshooting.html", "The task is red"),
        ("Where are my images, and how do I see them?", "operations/storage.html", "Folder layout"),
        ("Where are my images, and how do I see them?", "gallery/index.html", "Gallery"),
    ],
)
def test_the_first_page_answers_first_questions_within_a_click(question: str, page: str, heading: str) -> None:
    first = (SITE / "index.html").read_text("utf-8")
    row = next(part for part in first.split("<tr") if question in unescape(part))
    assert f'href="{page}' in row
    assert re.search(rf"<h\d>[^<]*{heading}", unescape((SITE / page).read_text("utf-8")))


@pytest.mark.parametrize("module", MODULES)
def test_the_python_api_documents_every_public_module(module: str) -> None:
    page = (SITE / "reference" / "python-api.html").read_text("utf-8")
    assert f'id="module-airflow_provider_imagen.{module}"' in page


def test_the_python_api_documents_every_public_name() -> None:
    ids = addresses(SITE / "reference" / "python-api.html").ids
    methods = [
        f"hooks.imagen.ImagenHook.{name}"
        for name, value in vars(ImagenHook).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]
    errors = [f"exceptions.{name}" for name, value in vars(exceptions).items() if name.endswith("Error")]
    others = [
        "operators.imagen.ImagenGenerateOperator.execute",
        "decorators.imagen.imagen_task",
        "policies.retry.ImagenRetryPolicy",
        "notifications.imagen.ImagenNotifier",
        "notifications.message.Message.slack",
        "review.review_body",
        "review.pick_images",
        "review.read_images",
        "review.quote_rest",
        "review.review_form",
        "review.read_review",
        "accounting.statement.Statement",
        "accounting.reconciliation.Entry",
        "testing.run_dag",
        "testing.DagTestRun.xcom",
        "testing.imagen_sandbox",
        "testing.imagen_connection",
        "sandbox.Sandbox",
        "sandbox.faults.Fault",
    ]
    assert [name for name in (*methods, *errors, *others) if f"airflow_provider_imagen.{name}" not in ids] == []


def test_every_operator_argument_is_set_off_from_its_description() -> None:
    page = (SITE / "reference" / "python-api.html").read_text("utf-8")
    for name in inspect.signature(ImagenGenerateOperator.__init__).parameters:
        if name not in ("self", "kwargs"):
            assert f"<strong>{name}</strong>" in page, name


def test_the_package_index_shows_the_readme_as_it_is_meant() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = markdown.render(text)
    assert shown is not None
    assert shown.count("<img ") == text.count("![")
    assert shown.count("<pre") == text.count("```") / 2
    assert shown.count("<h2") == text.count("\n## ")
    assert "&lt;!--" not in shown


def test_the_reference_is_generated_from_the_code() -> None:
    faults = unescape((SITE / "reference" / "sandbox.html").read_text("utf-8"))
    assert [name for name in KINDS if f">{name}<" not in faults] == []
    commands = unescape((SITE / "reference" / "cli.html").read_text("utf-8"))
    assert "usage: airflow-imagen whois" in commands
