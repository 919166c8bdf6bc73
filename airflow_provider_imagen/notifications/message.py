"""The message about a task or a run: what it contains, and its text, HTML and Slack forms."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from airflow_provider_imagen.image_record import read_record
from airflow_provider_imagen.links.gallery_urls import gallery_url, run_address, task_address
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.redaction import scrub_storage_text
from airflow_provider_imagen.run_report import RunSummary, add_summaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk import Context

log = logging.getLogger(__name__)

_MAX_ERROR_CHARACTERS: Final = 1500
_STATES_WITHOUT_FAILURE: Final = ("success", "skipped", "running")  # the last one in ``dag.test()``


class Message(Struct, frozen=True, kw_only=True):
    """
    What happened, for the templates of a notifier. Prompts in it are data: it is inserted, never rendered.

    :param task: the task, with its map index (``paint[3]``); ``None`` for a whole run
    :param summary: counts and costs, added up for a run; ``None`` if nothing was generated or it cannot be read
    :param has_failed: whether the task or the run has failed
    :param error: why; ``None`` if Airflow does not say
    :param without_results: tasks of the run that have no summary
    :param url: the images in the gallery; ``None`` if ``[api] base_url`` is not set
    """

    dag_id: str
    run_id: str
    task: str | None = None
    summary: RunSummary | None = None
    has_failed: bool = False
    error: str | None = None
    without_results: tuple[str, ...] = ()
    url: str | None = None

    @property
    def contact_sheet(self) -> str | None:
        """Path of the contact sheet; ``None`` if there is none, or several."""
        return self.summary.contact_sheet if self.summary is not None else None

    @property
    def subject(self) -> str:
        """One line, such as ``paint in my_dag: 12 of 12 images made, $0.504 spent``."""
        what = f"{self.task} in {self.dag_id}" if self.task else self.dag_id
        totals = self.summary.totals if self.summary is not None else "nothing was generated"
        return f"{what}{' failed' if self.has_failed else ''}: {totals}"

    @property
    def text(self) -> str:
        """The message as plain text."""
        links = [f"Pictures: {self.url}"] if self.url else []
        return "\n".join([self.subject, *(f"{name}: {value}" for name, value in self._details()), *links])

    @property
    def html(self) -> str:
        """The message as HTML, with everything escaped."""
        details = "\n".join(f"{name}: {value}" for name, value in self._details())
        paragraphs = [f"<strong>{escape(self.subject)}</strong>", escape(details).replace("\n", "<br>")]
        if self.url:
            paragraphs.append(f'<a href="{escape(self.url)}">Pictures</a>')
        return "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)

    @property
    def slack(self) -> str:
        """The message in Slack's markup, with everything escaped, so that no text can mention anybody."""
        links = [f"<{self.url}|Pictures>"] if self.url else []
        details = [f"{name}: {value}" for name, value in self._details()]
        return "\n".join(
            [f"*{escape(self.subject, quote=False)}*", *(escape(line, quote=False) for line in details), *links]
        )

    def _details(self) -> Iterator[tuple[str, str]]:
        yield "Run", self.run_id
        if self.error:
            yield "Error", self.error
        if self.without_results:
            yield "No results from", ", ".join(self.without_results)
        if self.summary is not None and self.summary.made and self.summary.output_path:
            yield "Stored in", scrub_storage_text(self.summary.output_path)


def message_for(context: Context) -> Message:
    """
    Return the message for the callback of a task or of a DAG, which Airflow gives a ``reason``.

    Results that cannot be read are left out: the message must not be lost with them.
    """
    return _of_run(context) if "reason" in context else _of_task(context)


def _of_task(context: Any) -> Message:
    ti = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    ids = {"dag_id": ti.dag_id, "run_id": ti.run_id}
    (summary,) = _pull(ti, task_ids=ti.task_id, map_indexes=[map_index]) or [None]
    error = context.get("exception")
    if error is not None and error.args and isinstance(error.args[0], Exception):  # in an AirflowFailException
        error = error.args[0]
    root = gallery_url()
    return Message(
        **ids,
        task=ti.task_id if map_index < 0 else f"{ti.task_id}[{map_index}]",
        summary=summary,
        has_failed=error is not None or getattr(ti, "state", None) not in _STATES_WITHOUT_FAILURE,
        error=_printable(f"{type(error).__name__}: {error}") if error is not None else None,
        url=root and task_address(root=root, task_id=ti.task_id, map_index=map_index, **ids),
    )


def _of_run(context: Any) -> Message:
    dag, ids = context["dag"], {"dag_id": context["dag"].dag_id, "run_id": context["run_id"]}
    found: dict[str, list[RunSummary]] = {
        task.task_id: [each for each in _pull(context.get("ti"), task_ids=[task.task_id]) if each is not None]
        for task in dag.tasks
        if _generates_images(task)
    }
    summaries = [summary for each in found.values() for summary in each]
    has_failed = context["reason"] != "success"
    root = gallery_url()
    return Message(
        **ids,
        summary=add_summaries(summaries) if summaries else None,
        has_failed=has_failed,
        error=str(context["reason"]) if has_failed else None,
        without_results=tuple(task_id for task_id, each in found.items() if not each),
        url=root and run_address(root=root, **ids),
    )


def _generates_images(task: Any) -> bool:
    """Return whether a task, mapped or not, is an ``ImagenGenerateOperator``."""
    operator = getattr(task, "operator_class", type(task))
    return inspect.isclass(operator) and issubclass(operator, ImagenGenerateOperator)


def _pull(ti: Any, **which: Any) -> list[RunSummary | None]:
    """Return the summaries in XCom, ``None`` for a missing one; nothing if they cannot be read."""
    try:
        values = ti.xcom_pull(key="summary", **which)
    except Exception as error:
        log.warning("The results for a notification could not be read: %s", error)
        return []
    return [read_record(RunSummary, value) if isinstance(value, Mapping) else None for value in values]


def _printable(text: str) -> str:
    """Return text of several lines without control characters, shortened."""
    text = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[: _MAX_ERROR_CHARACTERS - 1]}…"
