"""The page about the bill shows what the commands print, and its task works."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from doc_snippets import BLOCKS, find_block

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.api.client_request_id import new_client_request_id
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

FINGERPRINT = "0123456789abcdef0123"


def send(sandbox: Sandbox, count: int, *, model: str, client_request_id: Callable[[], str]) -> None:
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    for _ in range(count):
        body = {"model": model, "prompt": "A poster"}
        client.generate("/v1/images/generations", body, client_request_id=client_request_id())
    client.close()


@pytest.fixture
def month(
    run_dag: Callable[..., Any],
    sandbox: Sandbox,
    imagen_connection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the page's examples report: two DAGs, one of them stored in ``media``, and a chat bot with the same key."""
    monkeypatch.chdir(tmp_path)
    sandbox.add_fault(Fault("reset", billed=True, prompt="A fox"))
    with DAG("postcards", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=["A bench", "A lamp", "A fox", "A tram", "A kiosk"],
            output_path="media/postcards",
            filename="{index}",
            on_failure="accept",
        )
    assert run_dag(dag).state == "success"
    (tmp_path / "media" / "postcards" / "003.png").unlink()
    campaign = {"dag_id": "campaign", "task_id": "posters", "request": FINGERPRINT}
    send(sandbox, 12, model="flux/schnell", client_request_id=lambda: new_client_request_id(**campaign))
    send(sandbox, 2, model="flux/dev", client_request_id=lambda: "chat-bot")


def without_what_differs(text: str) -> list[str]:
    """Return the lines of an output without times and ids, and without the width of columns."""
    text = re.sub(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?|\b[0-9a-f]{21}\b|(?<= )/\S*(?=media/)", "…", text)
    return [" ".join(line.split()) for line in text.replace("─", "").splitlines() if line.strip("─ ")]


def test_the_commands_print_what_the_page_shows(month: None, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [block.text.removeprefix("$ airflow-imagen ").partition("\n") for block in BLOCKS if block.mark == "bill"]
    assert len(shown) == 3
    for command, _, rest in shown:
        output, _, status = rest.partition("$ echo $?\n")
        capsys.readouterr()
        assert main(command.split()) == int(status or 0)
        printed = capsys.readouterr().out
        assert without_what_differs(printed) == without_what_differs(output), printed


def test_the_task_on_the_page_works(month: None, run_dag: Callable[..., Any], tmp_path: Path) -> None:
    """Its window ends an hour ago, so it finds nothing until the window ends now."""
    snippet = find_block("bill: task").text
    for hours, state in ((1, "success"), (0, "failed")):
        here = snippet.replace("s3://aws_default@media", "media").replace("hours=1", f"hours={hours}")
        file = tmp_path / "audit.py"
        file.write_text(here.replace("\naudit()\n", "\nshown = audit()\n"))
        names: dict[str, Any] = {}
        exec(compile(file.read_text(), str(file), "exec"), names)

        assert run_dag(names["shown"]).state == state
