"""The API reference builds without warnings and covers everything that is public."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_imagen import exceptions
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "docs" / "api_reference.py"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}/index.html\n"
    return folder / "airflow_provider_imagen"


def test_every_public_name_is_documented(pages: Path) -> None:
    errors = [name for name, value in vars(exceptions).items() if inspect.isclass(value) and name.endswith("Error")]
    calls = [
        f"ImagenHook.{name}"
        for name, _ in inspect.getmembers(ImagenHook, inspect.isfunction)
        if name in vars(ImagenHook)
    ]
    for page, names in {
        "operators/imagen": ["ImagenGenerateOperator", "ImagenGenerateOperator.execute"],
        "decorators/imagen": ["imagen_task"],
        "hooks/imagen": ["ImagenHook", *(call for call in calls if "._" not in call)],
        "policies/retry": ["ImagenRetryPolicy"],
        "notifications/imagen": ["ImagenNotifier"],
        "notifications/message": ["Message", "Message.text", "Message.html", "Message.slack"],
        "exceptions": errors,
        "review": ["review_body", "pick_images"],
        "testing": ["run_dag", "DagTestRun", "DagTestRun.xcom", "imagen_sandbox", "imagen_connection"],
        "sandbox": ["Sandbox"],
        "sandbox/faults": ["Fault"],
    }.items():
        html = (pages / f"{page}.html").read_text("utf-8")
        for name in names:
            assert f'id="{name}"' in html, (page, name)


def test_every_operator_argument_is_set_off_from_its_description(pages: Path) -> None:
    html = (pages / "operators" / "imagen.html").read_text("utf-8")
    for name in inspect.signature(ImagenGenerateOperator.__init__).parameters:
        if name not in ("self", "kwargs"):
            assert f"<li><strong>{name}</strong>:" in html, name
