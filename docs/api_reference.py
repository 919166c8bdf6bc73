"""
Build the API reference from the docstrings.

    python docs/api_reference.py [FOLDER]

What is public is listed here. Without a folder the pages go to ``docs/api``, which git ignores. Needs the ``[dev]``
extra.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pdoc

PUBLIC = (
    "airflow_provider_imagen.operators.imagen",
    "airflow_provider_imagen.decorators.imagen",
    "airflow_provider_imagen.hooks.imagen",
    "airflow_provider_imagen.policies.retry",
    "airflow_provider_imagen.notifications.imagen",
    "airflow_provider_imagen.notifications.message",
    "airflow_provider_imagen.exceptions",
    "airflow_provider_imagen.review",
    "airflow_provider_imagen.testing",
    "airflow_provider_imagen.sandbox",
    "airflow_provider_imagen.sandbox.faults",
)


def main() -> None:
    """Write the pages; a warning fails."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "api"
    warnings.simplefilter("error")
    # An attribute that Airflow's metaclass adds has no source.
    warnings.filterwarnings("ignore", message=r".*_BaseOperator__init_kwargs")
    # Whatever Airflow's own modules warn of is Airflow's.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # By itself pdoc shows the bases of the last ancestor that is generic.
    pdoc.doc.Class.bases = property(lambda each: [_name(base) for base in each.obj.__bases__ if base is not object])
    read = pdoc.docstrings.rst
    pdoc.docstrings.rst = lambda contents, source: read(_with_fields_apart(contents), source)
    pdoc.render.configure(docformat="restructuredtext", include_undocumented=False, show_source=False)
    pdoc.pdoc(*PUBLIC, output_directory=folder)
    print(f"{folder}/index.html")


def _name(base: type) -> tuple[str, str, str]:
    return base.__module__, base.__qualname__, f"{base.__module__}.{base.__qualname__}"


def _with_fields_apart(docstring: str) -> str:
    """Put the text of a field on a line of its own: pdoc takes the line's last colon for the end of the name."""
    return re.sub(r"^:(param|raises) ([\w.]+): *(?=\S)", r":\1 \2:\n    ", docstring, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
