"""
The documentation site: Markdown pages, and a reference that is generated from the code.

    pip install -e '.[docs]'
    python -m sphinx -W docs FOLDER

The pages load nothing from other hosts, and building them needs no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from airflow_provider_imagen import __version__

project = "airflow-provider-imagen"
author = "The airflow-provider-imagen founders"
copyright = f"2026, {author}. Apache License 2.0"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated_reference"]

myst_heading_anchors = 4  # links to headings are checked
myst_links_external_new_tab = False

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the descriptions say what is allowed
autodoc_preserve_defaults = True

highlight_language = "none"

html_theme = "pydata_sphinx_theme"
html_title = "airflow-provider-imagen"
html_logo = "logo.svg"
html_favicon = "logo.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_use_index = False
html_domain_indices = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "airflow-provider-imagen"},
    "github_url": "https://github.com/airflow-provider-imagen/airflow-provider-imagen",
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
