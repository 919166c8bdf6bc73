"""``airflow-imagen bill`` against the sandbox; ``test_bill_of_three_dags`` checks its figures."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from stored_images import store_images

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.hooks.charges import reconcile_charges
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

OURS = "imagen:{dag}:paint:0123456789abcdef0123:{number:016x}"


def spend(sandbox: Sandbox, *names: str, model: str = "flux/dev") -> None:
    """Generate one image per client request id."""
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    for name in names:
        body = {"model": model, "prompt": "a bench"}
        client.generate("/v1/images/generations", body, client_request_id=name)
    client.close()


def bill(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["bill", *arguments])
    return status, capsys.readouterr().out


@pytest.fixture
def second_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(picture_scale=0.125, api_key="another-key-of-another-account") as sandbox:
        connection = {"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key}
        monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_OTHER", json.dumps(connection))
        yield sandbox


def test_charges_are_grouped_by_dag(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spend(sandbox, OURS.format(dag="cards", number=1), OURS.format(dag="cards", number=2), "bot-1")
    spend(sandbox, OURS.format(dag="posters", number=3), model="flux/schnell")
    status, shown = bill(capsys)

    assert status == 0
    assert shown.startswith(f"Charges of key sandbox ({sandbox.api_key[:8]}…), ")
    lines = [line.split() for line in shown.splitlines()]
    assert ["cards", "2", "$0.066"] in lines
    assert ["posters", "1", "$0.004"] in lines
    assert "Other clients of the key        $0.033  1 charge" in shown
    assert "Total                           $0.103  4 charges" in shown
    assert "Ledger                          $0.103  agrees" in shown
    assert sandbox.api_key not in shown


def test_csv_has_a_row_per_client_and_group(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spend(sandbox, OURS.format(dag="cards", number=1), "bot-1")
    _, shown = bill(capsys, "--csv", "--by", "day", "--by", "model", "--by", "dag", "--by", "dag")

    today = sandbox_day(sandbox)
    assert list(csv.reader(io.StringIO(shown))) == [
        ["client", "day", "model", "dag", "charges", "usd"],
        ["airflow-provider-imagen", today, "flux/dev", "cards", "1", "0.033"],
        ["other clients", today, "flux/dev", "unknown", "1", "0.033"],
    ]


def sandbox_day(sandbox: Sandbox) -> str:
    return datetime.fromtimestamp(sandbox.ledger()[0].at, UTC).date().isoformat()


def test_several_keys_can_be_billed_together(
    sandbox: Sandbox, second_account: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spend(sandbox, OURS.format(dag="cards", number=1))
    spend(second_account, OURS.format(dag="cards", number=2), OURS.format(dag="cards", number=3))
    both = ("--imagen-conn-id", "imagen_default", "--imagen-conn-id", "imagen_other")
    _, shown = bill(capsys, "--json", "--by", "key", *both, *both)

    document = json.loads(shown)
    assert sorted(each["count"] for each in document["own"]["groups"]) == [1, 2]
    assert len(document["keys"]) == 2
    assert document["ledger"]["is_equal"]


def test_the_window_can_be_given(sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]) -> None:
    spend(sandbox, OURS.format(dag="cards", number=1))
    day = datetime.fromisoformat(sandbox_day(sandbox))
    day_before, day_after = ((day + timedelta(days=days)).date().isoformat() for days in (-1, 1))

    def count(*window: str) -> int:
        return int(json.loads(bill(capsys, "--json", *window)[1])["total"]["count"])

    assert count("--since", sandbox_day(sandbox), "--until", day_after) == 1
    assert count("--since", day_before, "--until", sandbox_day(sandbox)) == 0
    assert count("--since", f"{day_before}T12:00+00:00", "--until", f"{day_after}T12:00:00Z") == 1
    assert count("--since", "2024-01-01") == 1


def test_charges_that_have_not_reached_the_log_are_absent(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sandbox.configure(log_lag_seconds=600)
    store_images(tmp_path, ["a bench"])
    status, shown = bill(capsys, "--reconcile", str(tmp_path))

    assert status == 1
    assert "not charged" in shown
    sandbox.configure(log_lag_seconds=0)
    assert bill(capsys, "--reconcile", str(tmp_path))[0] == 0


def test_a_reconciliation_lists_what_is_missing(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store_images(tmp_path / "monday", ["a bench", "a lamp"])
    store_images(tmp_path / "tuesday", ["a bench"], run_id="tuesday")
    assert bill(capsys, "--reconcile", str(tmp_path))[1].endswith("Nothing is missing.\n")
    (gone,) = (tmp_path / "tuesday").glob("*.png")
    gone.unlink()
    status, shown = bill(capsys, "--reconcile", str(tmp_path / "monday"), str(tmp_path / "tuesday"))

    assert status == 1
    inference_id = sandbox.ledger()[2].inference_id
    (line,) = (line for line in shown.splitlines() if inference_id in line)
    assert line.split()[0] == "gone"
    assert line.endswith(f"imagen-3.0-generate-002  inference {inference_id}  file missing  {gone}")
    assert "$0.042" in line


def test_cells_are_no_formulas(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store_images(tmp_path, ["a bench"])
    manifest = next((tmp_path / ".imagen" / "parts").iterdir())
    for path in (manifest, tmp_path / "metadata.jsonl"):
        line = json.loads(path.read_text())
        path.write_text(json.dumps({**line, "task_id": "=HYPERLINK(1)", "dag_id": "@x"}))
    _, shown = bill(capsys, "--csv", "--reconcile", str(tmp_path))

    (row,) = csv.DictReader(io.StringIO(shown))
    assert (row["category"], row["task_id"], row["dag_id"]) == ("stored", "'=HYPERLINK(1)", "'@x")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--json", "--csv"], "pass --json or --csv, not both"),
        (["--verify"], "--verify needs --reconcile"),
        (["--since", "2999-01-01"], "--since must be before --until ("),
        (["--until", "2024-01-01"], "--since must be before --until (2024-01-01 00:00 UTC)"),
        (["--reconcile", ""], "the path or URI of a folder is allowed"),
        (["--reconcile", "/no/such/folder"], "is not an output folder"),
        (["--reconcile", "moon://x"], "folders='moon://x'"),
        (["--imagen-conn-id", "absent"], "absent"),
    ],
)
def test_wrong_arguments_are_reported_before_the_log_is_read(
    arguments: list[str],
    problem: str,
    sandbox: Sandbox,
    imagen_connection: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bill", *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert sandbox.seen("/v2/logs") == []


@pytest.mark.parametrize(
    "arguments",
    [["--since", "yesterday"], ["--by", "month"], ["--until", "0001-01-01T00+14:00"], ["--since", "2019-12-31"]],
)
def test_wrong_values_are_reported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bill", *arguments])
    assert caught.value.code == 2
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/v2/logs", "/v2/billing/transactions", "/v1/key"])
def test_a_rejected_key_is_reported(
    path: str, sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.add_fault(Fault("status", status=401, path=path, times=None))

    assert main(["bill"]) == 2
    assert "401" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/v2/logs", "/v2/billing/transactions"])
def test_a_busy_api_is_asked_again(
    path: str, sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spend(sandbox, OURS.format(dag="cards", number=1))
    sandbox.add_fault(Fault("status", status=429, path=path, retry_after=0.05, times=2))
    sandbox.add_fault(Fault("reset", path=path))

    status, shown = bill(capsys, "--json")
    assert (status, json.loads(shown)["total"]["count"]) == (0, 1)
    assert len(sandbox.seen(path)) == 4


def test_ctrl_c_ends_the_command_at_once(sandbox: Sandbox, imagen_connection: str, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("slow", path="/v2/logs", seconds=60, times=None))
    process = subprocess.Popen(
        [sys.executable, "-m", "airflow_provider_imagen.cli", "bill"],
        env=os.environ | {"AIRFLOW_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not sandbox.seen("/v2/logs"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)

    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr


def test_a_task_can_reconcile(
    run_dag: Callable[..., Any], sandbox: Sandbox, imagen_connection: str, tmp_path: Path
) -> None:
    with DAG("postcards", schedule=None) as dag:
        painted = ImagenGenerateOperator(task_id="paint", prompt=["a", "b"], output_path=str(tmp_path))

        @task
        def audit() -> dict[str, Any]:
            hook = ImagenHook()
            result = hook.reconcile(tmp_path, since=datetime.now(UTC) - timedelta(hours=1))
            assert result.is_complete
            assert result.statement.total == hook.get_statement(since=result.statement.since).total
            return result.to_json()

        painted >> audit()
    run = run_dag(dag)

    assert run.state == "success"
    found = run.get_task_instances()[0].xcom_pull(task_ids="audit")
    assert found["categories"]["stored"]["count"] == 2
    assert Decimal(str(found["categories"]["stored"]["usd"])) == sum(charge.usd for charge in sandbox.ledger())
    assert found["missing"] == []


@pytest.fixture
def same_key(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of connections that spell the address of one account in different ways."""
    by_name = sandbox.url.replace("127.0.0.1", "localhost")
    hosts = {"plain": sandbox.url, "versioned": f"{sandbox.url}/v1/", "named": by_name}
    for name, host in hosts.items():
        connection = {"conn_type": "imagen", "host": host, "password": sandbox.api_key}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
    return list(hosts)


def test_a_key_of_several_connections_is_billed_once(
    sandbox: Sandbox, same_key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spend(sandbox, OURS.format(dag="cards", number=1))
    arguments = [argument for name in same_key for argument in ("--imagen-conn-id", name)]
    _, shown = bill(capsys, "--json", *arguments)

    document = json.loads(shown)
    assert (document["total"]["count"], len(document["keys"])) == (1, 1)
    assert document["ledger"]["is_equal"]


def test_a_short_outage_does_not_end_the_bill(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.add_fault(Fault("status", status=503, path="/v1/key"))
    status, shown = bill(capsys)

    assert (status, len(sandbox.seen("/v1/key"))) == (0, 2)
    assert shown.startswith("Charges of key sandbox (")


def test_a_key_whose_name_cannot_be_read_is_named_after_its_connection(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.add_fault(Fault("status", status=404, path="/v1/key", times=None))
    status, shown = bill(capsys)

    assert status == 0
    assert shown.startswith("Charges of key imagen_default, ")


class ScriptedApi:
    """Answers each path with a fixed document, else with a 404."""

    def __init__(self) -> None:
        documents = self.documents = {
            "/v1/key": {"data": {"name": "team", "prefix": "12345678"}},
            "/v2/logs": self.page(),
            "/v2/billing/transactions": self.page(),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document = documents.get(self.path.partition("?")[0])
                body = json.dumps(document or {}).encode()
                self.send_response(404 if document is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Keep stderr clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def page(*rows: Any) -> dict[str, Any]:
        return {"data": list(rows), "pagination": {"has_more": False, "next_cursor": None}}


@pytest.fixture
def scripted_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedApi]:
    api = ScriptedApi()
    connection = {"conn_type": "imagen", "host": api.url, "password": "a-key"}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(connection))
    yield api
    api.server.shutdown()
    api.server.server_close()


def test_a_gateway_has_no_bill(scripted_api: ScriptedApi, capsys: pytest.CaptureFixture[str]) -> None:
    scripted_api.documents.pop("/v1/key")
    scripted_api.documents["/v1/models"] = {"data": [{"id": "gpt-image-1", "object": "model"}]}

    assert main(["bill"]) == 2
    assert "imagen_default is an OpenAI-compatible gateway, which has no request log." in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/v2/logs", "/v2/billing/transactions"])
@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_rows_that_cannot_be_read_are_reported_in_every_form(
    path: str, form: str, scripted_api: ScriptedApi, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_api.documents[path] = ScriptedApi.page({"cost": "?"})
    arguments = [] if form == "text" else [f"--{form}"]

    assert main(["bill", *arguments]) == 2
    shown = capsys.readouterr()
    if form == "json":
        document = json.loads(shown.out)
        assert document["unreadable_rows"] + document["ledger"]["unreadable_entries"] == 1
    else:
        text = shown.out if form == "text" else shown.err
        assert f"1 row of the {'request log' if path == '/v2/logs' else 'ledger'} cannot be read" in text


def test_nothing_is_called_complete_if_a_row_cannot_be_read(
    scripted_api: ScriptedApi, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".imagen").mkdir()
    scripted_api.documents["/v2/logs"] = ScriptedApi.page({"cost": "?"})
    status, shown = bill(capsys, "--reconcile", str(tmp_path))

    assert status == 1
    assert shown.endswith("Nothing is known to be missing, but not everything could be read and matched.\n")


def test_charges_of_tasks_without_a_folder_are_part_of_the_verdict(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A task that was killed before it wrote anything may be one of them."""
    (tmp_path / ".imagen").mkdir()
    spend(sandbox, OURS.format(dag="cards", number=1))
    status, shown = bill(capsys, "--reconcile", str(tmp_path))

    assert status == 0
    assert shown.endswith("Nothing is missing; $0.033 was charged to tasks that have nothing in these folders.\n")


def test_images_without_a_request_or_a_date_are_counted(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store_images(tmp_path, ["a bench"])
    sandbox.configure(log_lag_seconds=600)
    (part,) = (tmp_path / ".imagen" / "parts").iterdir()
    for path in (part, tmp_path / "metadata.jsonl"):
        line = json.loads(path.read_text())
        path.write_text(json.dumps({**line, "inference_id": None, "client_request_id": None}))

    for form in ((), ("--csv",), ("--json",)):
        assert main(["bill", "--reconcile", str(tmp_path), *form]) == 1
        shown = capsys.readouterr()
        if form == ("--json",):
            assert json.loads(shown.out)["reconciliation"]["unmatched_images"] == 1
        else:
            assert "1 image without a request or date cannot be matched." in (shown.err if form else shown.out)


def test_text_from_folders_has_no_control_characters(
    sandbox: Sandbox, imagen_connection: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An id of an earlier version names no task either."""
    old = "imagen.0123456789abcdef0123.0123456789abcdef"
    spend(sandbox, old)
    folder = tmp_path / ".imagen" / "failures"
    folder.mkdir(parents=True)
    error = "\x1b]0;owned\x07\x1b[31mEvil\r\n=1+1"
    (folder / "a.jsonl").write_text(json.dumps({"error": error, "client_request_id": old}))

    for form in ((), ("--csv",)):
        _, shown = bill(capsys, "--reconcile", str(tmp_path), *form)
        assert "[31mEvil =1+1" in shown
        assert all(each.isprintable() or each == "\n" for each in shown)
    assert "unknown task" in bill(capsys, "--reconcile", str(tmp_path))[1]


def test_images_recorded_while_the_log_is_read_are_found(
    sandbox: Sandbox, imagen_connection: str, tmp_path: Path
) -> None:
    """Running tasks may even create their folder meanwhile."""
    store_images(tmp_path / "monday", ["a bench"])
    written = []

    def store_more() -> None:
        if not written:
            written.append(True)
            source = tmp_path / "monday"
            shutil.copytree(source, tmp_path / "tuesday")
            shutil.rmtree(source)

    clients = {"imagen_default": ImagenHook().get_conn()}
    result = reconcile_charges(clients, [tmp_path], since=None, until=None, verify=False, on_row=store_more)

    assert [entry.category for entry in result.entries] == ["stored"]


def test_each_difference_of_the_ledger_is_one_sentence(
    scripted_api: ScriptedApi, capsys: pytest.CaptureFixture[str]
) -> None:
    at = {"created_at": datetime.now(UTC).isoformat(), "created": datetime.now(UTC).isoformat()}

    def entry(usd: float, kind: str = "MODEL_USAGE", direction: str = "CHARGE", **ids: str) -> dict[str, Any]:
        return {**at, "direction": direction, "type": kind, "amount": {"usd": usd}, **ids}

    def row(usd: float, inference_id: str) -> dict[str, Any]:
        return {**at, "cost": {"usd": usd}, "inference_id": inference_id}

    scripted_api.documents["/v2/logs"] = ScriptedApi.page(row(0.1, "a"), row(0.2, "b"), row(0.3, "c"))
    scripted_api.documents["/v2/billing/transactions"] = ScriptedApi.page(
        entry(0.05, reference_id="a"),
        entry(0.004, reference_id="x"),
        entry(2, "CREDITS_EXPIRED"),
        entry(0.5, "REFUND", "TOPUP"),
    )
    _, shown = bill(capsys)

    assert shown.splitlines()[-5:] == [
        "  2 charges, $0.50, are only in the log (the ledger shows recent charges later)",
        "  1 charge, $0.004, is only in the ledger (another key of the account, or not logged yet)",
        "  1 charge, $2.00, is for something other than models, such as expired credits",
        "  1 refund, $0.50",
        "  1 charge has another amount in the ledger, $0.05 less in all",
    ]
