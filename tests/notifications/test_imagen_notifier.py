"""Notifications, run by a real Airflow against the sandbox, and delivered by notifiers like those of its providers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, BaseNotifier

from airflow_provider_imagen.notifications.imagen import ImagenNotifier
from airflow_provider_imagen.notifications.message import Message, message_for
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.run_report import RunSummary, add_summaries
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


class Post(BaseNotifier):
    """Like the notifiers of Airflow's providers: renders its template fields, then sends them."""

    template_fields = ("text", "blocks")

    def __init__(self, sent: list[Any], text: str, blocks: list[Any] | None = None) -> None:
        super().__init__()
        self.sent = sent
        self.text = text
        self.blocks = blocks

    def notify(self, context: Any) -> None:
        self.sent.append((self.text, self.blocks))


def messages_of(run_dag: Callable[..., Any], template: str, **arguments: Any) -> list[str]:
    """Run one operator in a DAG of its own, and return the messages about it."""
    sent: list[Any] = []
    notify = ImagenNotifier(Post(sent, template))
    with DAG(f"notified_{id(sent)}", schedule=None):
        paint = ImagenGenerateOperator.partial if "expand" in arguments else ImagenGenerateOperator
        callbacks = {"on_success_callback": notify, "on_failure_callback": notify}
        expand = arguments.pop("expand", None)
        made = paint(task_id="paint", retry_delay=timedelta(0), **callbacks, **arguments)
        dag = (made.expand(**expand) if expand else made).dag
    run_dag(dag)
    return [text for text, _ in sent]


@pytest.fixture
def base_url(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/team")
    return "https://airflow.example.com/team"


def test_a_success_is_reported_with_its_cost_and_a_link(
    run_dag: Callable[..., Any], base_url: str, tmp_path: Path
) -> None:
    (text,) = messages_of(run_dag, "{{ imagen.text }}", prompt=["a", "b", "c"], output_path=str(tmp_path))

    subject, run, stored, link = text.splitlines()
    assert subject.endswith(": 3 of 3 images made, $0.126 spent")
    assert subject.startswith("paint in notified_")
    assert run.startswith("Run: manual__")
    assert stored == f"Stored in: {tmp_path}"
    assert link.startswith(f"Pictures: {base_url}/imagen/task?dag_id=notified_")


def test_without_the_address_of_airflow_there_is_no_link(run_dag: Callable[..., Any]) -> None:
    (text,) = messages_of(run_dag, "{{ imagen.text }}", prompt="a")
    assert "Pictures" not in text


def test_a_partial_failure_is_reported_with_its_error(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("status", prompt="b", status=400))

    (text,) = messages_of(run_dag, "{{ imagen.text }}", prompt=["a", "b", "c"])

    assert " failed: 2 of 3 images made, 1 failed, $0.084 spent\n" in text


def test_a_task_that_generated_nothing_says_so(run_dag: Callable[..., Any]) -> None:
    (text,) = messages_of(run_dag, "{{ imagen.text }}", prompt="a", num_images=99)

    assert " failed: nothing was generated\n" in text


def test_each_mapped_task_tells_of_itself(run_dag: Callable[..., Any]) -> None:
    texts = messages_of(run_dag, "{{ imagen.subject }}", expand={"prompt": ["a", ["b", "c"]]})

    assert sorted(text.partition(": ")[2] for text in texts) == [
        "1 of 1 images made, $0.042 spent",
        "2 of 2 images made, $0.084 spent",
    ]
    assert sorted(text.partition(" ")[0] for text in texts) == ["paint[0]", "paint[1]"]


def test_the_numbers_are_there_for_templates_of_your_own(run_dag: Callable[..., Any]) -> None:
    assert messages_of(run_dag, "{{ imagen.summary.made }} for {{ dag.dag_id[:8] }}", prompt=["a", "b"]) == [
        "2 for notified"
    ]


def test_a_function_can_deliver(run_dag: Callable[..., Any]) -> None:
    messages: list[Message] = []
    with DAG("notified_function", schedule=None) as dag:
        notify = ImagenNotifier(lambda context: messages.append(context["imagen"]))
        ImagenGenerateOperator(task_id="paint", prompt="a", on_success_callback=notify)
    run_dag(dag)

    assert messages[0].summary is not None
    assert (messages[0].summary.made, messages[0].has_failed) == (1, False)


class Ti:
    """The parts of a task instance that a callback's context holds."""

    dag_id, run_id, task_id, map_index, state = "d", "r", "paint", -1, "failed"

    def __init__(self, xcoms: Any = None) -> None:
        self.xcoms = xcoms or {}

    def xcom_pull(self, *, key: str, task_ids: Any, map_indexes: Any = None) -> Any:
        if isinstance(self.xcoms, Exception):
            raise self.xcoms
        assert key == "summary"
        if isinstance(task_ids, list):
            return [value for task_id in task_ids for value in self.xcoms.get(task_id, [None])]
        return [self.xcoms.get(task_ids)]


EVIL = "{{ 1 / 0 }} <!channel> <script>alert(1)</script> & \x1b[31m"


def test_text_from_outside_is_data(base_url: str) -> None:
    sent: list[Any] = []
    notify = ImagenNotifier(Post(sent, "{{ imagen.text }}", ["{{ imagen.html }}", "{{ imagen.slack }}"]))
    notify({"ti": Ti(), "exception": ValueError(EVIL)})

    ((text, (html, slack)),) = sent
    assert "Error: ValueError: {{ 1 / 0 }} <!channel> <script>alert(1)</script> &" in text
    assert "\x1b" not in text
    assert "{{ 1 / 0 }}" in html
    assert "{{ 1 / 0 }}" in slack
    assert "<script" not in html + slack
    assert "<!channel" not in slack
    assert "&amp;" in slack
    assert f'<a href="{base_url}/imagen/task?dag_id=d&amp;run_id=r' in html
    assert slack.endswith("|Pictures>")


def test_one_notifier_serves_many_tasks() -> None:
    sent: list[Any] = []
    notify = ImagenNotifier(Post(sent, "{{ imagen.subject }}"))
    for made in (1, 2):
        notify({"ti": Ti({"paint": {"requested": 2, "made": made}})})

    assert [text.partition(": ")[2] for text, _ in sent] == [f"{made} of 2 images made, $0.00 spent" for made in (1, 2)]


@pytest.mark.parametrize("xcoms", [ConnectionError("no API server"), {"paint": "s3://elsewhere"}, {}])
def test_a_failure_is_reported_even_if_its_results_cannot_be_read(xcoms: Any) -> None:
    message = message_for({"ti": Ti(xcoms), "exception": ValueError("out of credits")})

    assert message.subject == "paint in d failed: nothing was generated"
    assert message.error == "ValueError: out of credits"


def test_a_run_adds_up_its_tasks() -> None:
    with DAG("whole_run", schedule=None) as dag:
        ImagenGenerateOperator(task_id="one", prompt="a")
        ImagenGenerateOperator.partial(task_id="many").expand(prompt=["a", "b"])
        ImagenGenerateOperator(task_id="skipped", prompt=[])
    xcoms = {
        "one": [{"requested": 1, "made": 1, "usd_spent": 0.042}],
        "many": [{"requested": 1, "made": 1, "usd_spent": 0.042}, {"requested": 1, "failed": 1, "in_doubt": ["x"]}],
    }
    message = message_for({"dag": dag, "run_id": "r", "ti": Ti(xcoms), "reason": "task_failure"})

    assert message.text.splitlines() == [
        "whole_run failed: 2 of 3 images made, 1 failed, $0.084 spent, up to $0.00 more in doubt",
        "Run: r",
        "Error: task_failure",
        "No results from: skipped",
    ]
    assert message_for({"dag": dag, "run_id": "r", "reason": "success"}).subject == "whole_run: nothing was generated"


def test_summaries_add_up() -> None:
    first = RunSummary(requested=2, made=1, failed=1, usd_spent=0.1, usd_by_model={"a": 0.1}, contact_sheet="sheet")
    second = RunSummary(requested=3, made=3, usd_spent=0.3, usd_by_model={"a": 0.1, "b": 0.2}, usd_is_estimate=True)

    both = add_summaries([first, second])

    assert (both.requested, both.made, both.failed, both.usd_is_estimate, both.contact_sheet) == (5, 4, 1, True, None)
    assert both.totals == "4 of 5 images made, 1 failed, about $0.40 spent"
    assert both.usd_by_model == {"a": 0.2, "b": 0.2}
    assert add_summaries([first]) == first
