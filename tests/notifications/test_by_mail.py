"""Notifications through Airflow's ``SmtpNotifier``, received by a real SMTP server."""

from __future__ import annotations

import json
import socket
from email import message_from_bytes
from email.policy import default as email_policy
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import DAG
from PIL import Image

from airflow_provider_imagen._compat import get_dag_bag
from airflow_provider_imagen.notifications.imagen import ImagenNotifier
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import EmailMessage

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "imagen_notify.py"

pytestmark = pytest.mark.usefixtures("imagen_connection")


class Mailbox:
    """Keeps the e-mails that an SMTP server receives."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - its name in aiosmtpd
        self.mails.append(message_from_bytes(envelope.content, policy=email_policy))  # type: ignore[arg-type]
        return "250 OK"


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EmailMessage]]:
    """Run an SMTP server as the connection ``smtp_default``, and return what it receives."""
    mailbox = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com"}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com")
    yield mailbox.mails
    server.stop()


def test_the_example_sends_counts_costs_and_a_link(
    run_dag: Callable[..., Any], mails: list[EmailMessage], tmp_path: Path
) -> None:
    load, _ = get_dag_bag()
    run = run_dag(load(dag_folder=str(EXAMPLE)).dags["imagen_notify"], run_conf={"output_path": str(tmp_path)})

    (mail,) = mails
    assert str(run.state) == "success"
    assert (mail["From"], mail["To"]) == ("airflow@example.com", "team@example.com")
    assert mail["Subject"] == "paint in imagen_notify: 2 of 2 images made, $0.084 spent"
    body = mail.get_body(("html",))
    assert body is not None
    assert "<strong>paint in imagen_notify: 2 of 2 images made" in body.get_content()
    assert '<a href="https://airflow.example.com/imagen/task?dag_id=imagen_notify&amp;run_id=' in body.get_content()


def test_the_contact_sheet_can_be_attached(
    run_dag: Callable[..., Any], mails: list[EmailMessage], tmp_path: Path
) -> None:
    mail = SmtpNotifier(
        to="team@example.com",
        subject="{{ imagen.subject }}",
        html_content="{{ imagen.html }}",
        files=["{{ imagen.contact_sheet }}"],
    )
    with DAG("with_a_sheet", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=["A fox", "A heron"],
            output_path=str(tmp_path),
            contact_sheet=True,
            on_success_callback=ImagenNotifier(mail),
        )
    run_dag(dag)

    (received,) = mails
    (attachment,) = received.iter_attachments()
    with Image.open(BytesIO(attachment.get_content())) as sheet:
        assert sheet.width > 100
