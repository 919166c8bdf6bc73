"""Every link of every page leads somewhere. Addresses of other sites are only checked for their form."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from doc_snippets import PAGES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

REPOSITORY = "https://github.com/airflow-provider-imagen/airflow-provider-imagen"
RAW = "https://raw.githubusercontent.com/airflow-provider-imagen/airflow-provider-imagen/main/"
LINKS = [
    pytest.param(page, target, id=f"{page.relative_to(ROOT)}: {target}")
    for page, text in PAGES.items()
    for target in sorted(
        {match[1] for match in re.finditer(r"\]\(<?([^)>\s]+)>?\)|^!?\[.*?\]: (\S+)$", text, re.MULTILINE) if match[1]}
    )
]


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    without_code = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    for prefix in (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", RAW):
        if target.startswith(prefix):
            target, page = target.removeprefix(prefix), ROOT / "README.md"
    if re.match(r"\w+:", target):
        address = urlsplit(target)
        assert address.scheme in ("https", "http")
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.hostname or ""), "a host"
        assert address.scheme == "https" or address.hostname == "127.0.0.1"
        return
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    assert file.is_relative_to(ROOT)
    if anchor:
        assert anchor in _anchors(file)
