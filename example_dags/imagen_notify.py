"""
### An e-mail about every batch

When the task ends, well or badly, Airflow's own `SmtpNotifier` sends what was made and what it cost, with a link to the
images. It needs an [SMTP connection](https://airflow.apache.org/docs/apache-airflow-providers-smtp/stable/connections/smtp.html)
with the id `smtp_default`.
"""

from __future__ import annotations

from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import dag

from airflow_provider_imagen.notifications.imagen import ImagenNotifier
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


@dag(
    schedule=None,
    tags=["imagen", "example"],
    doc_md=__doc__,
    params={"output_path": "imagen-pictures", "mail_to": "team@example.com"},
)
def imagen_notify():
    # [START imagen_notify]
    mail = ImagenNotifier(
        SmtpNotifier(to="{{ params.mail_to }}", subject="{{ imagen.subject }}", html_content="{{ imagen.html }}")
    )
    ImagenGenerateOperator(
        task_id="paint",
        prompt=["A tin robot watering a plant", "A tin robot reading a map"],
        output_path="{{ params.output_path }}/{{ run_id }}",
        on_success_callback=mail,
        on_failure_callback=mail,
    )
    # [END imagen_notify]


imagen_notify()
