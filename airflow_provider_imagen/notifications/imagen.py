"""The notifier that says what a task or a run has generated."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context


class ImagenNotifier(BaseNotifier):
    """
    Say what a task or a run has generated and what it cost, through another notifier.

    For the callbacks of an ``ImagenGenerateOperator``, or of a DAG: then the totals are those of all such tasks in the
    run. The other notifier's template fields may use ``imagen``, a
    :class:`~airflow_provider_imagen.notifications.message.Message`::

        ImagenNotifier(
            SmtpNotifier(to="team@example.com", subject="{{ imagen.subject }}", html_content="{{ imagen.html }}")
        )
        ImagenNotifier(SlackWebhookNotifier(text="{{ imagen.slack }}"))

    :param deliver: any notifier, or a function that takes Airflow's context, in which ``imagen`` is the message
    """

    def __init__(self, deliver: Callable[[Context], Any]) -> None:
        super().__init__()
        self.deliver = deliver

    def notify(self, context: Context) -> None:
        """Deliver the message; called by Airflow."""
        from airflow_provider_imagen.notifications.message import message_for

        deliver = copy(self.deliver)  # rendering replaces a notifier's templates, and this one may be called again
        extended: Any = {**context, "imagen": message_for(context)}
        deliver(extended)
