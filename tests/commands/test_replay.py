"""``airflow-imagen replay``: quote past prompts on other models, and buy a sample once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from airflow.sdk import DAG
from airflow.sdk.io import attach
from doc_snippets import shown_commands
from stored_images import store_images

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

FLUX, GPT, QWEN = "flux/dev", "openai/gpt-image-2", "alibaba/qwen-image-3"
LONG = "A page of a picture book. " * 35

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imagen_connection")]


@pytest.fixture
def past(tmp_path: Path) -> Path:
    return tmp_path / "past"


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def run(*arguments: Any) -> tuple[int, Any]:
        capsys.readouterr()
        status = main(["replay", *map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def models(*names: str) -> list[str]:
    return [argument for name in names for argument in ("--model", name)]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def charges(sandbox: Sandbox) -> Counter[tuple[str, str]]:
    return Counter((charge.prompt, charge.model) for charge in sandbox.ledger())


# --- the quote --------------------------------------------------------------------------------------------------------


def test_the_prompts_of_a_dag_run_are_quoted_on_other_models(
    replay: Any, run_dag: Any, sandbox: Sandbox, past: Path
) -> None:
    with DAG("postcards", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=["A lighthouse", {"prompt": "A harbour", "aspect_ratio": "4:3", "enhance_prompt": True}],
            num_images=2,
            output_path=str(past),
        )
    assert run_dag(dag).state == "success"
    status, report = replay(past, *models(FLUX, GPT))

    quote = report["quote"]
    assert (status, quote["prompts"], quote["images"], quote["usd"]) == (0, 2, 4, 0.168)
    flux, gpt = quote["models"]
    assert (flux["images"], flux["usd"], flux["usd_source"]) == (4, pytest.approx(4 * 0.033), "live")
    assert (flux["left_out"], flux["rejected"]) == ({"enhance_prompt": 1}, [])
    assert (gpt["images"], gpt["usd"]) == (2, pytest.approx(2 * 0.054))
    assert [each["prompt"] for each in gpt["rejected"]] == ["A harbour"]
    assert "aspect_ratio" in gpt["rejected"][0]["reason"]
    assert len(sandbox.ledger()) == 2


def test_the_table_shows_prices_reasons_and_fields_left_out(past: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_images(past, [{"prompt": LONG, "model": FLUX}, {"prompt": "A fox", "safety_setting": "block_only_high"}])
    assert main(["replay", str(past / "metadata.jsonl"), *models(QWEN, "reve/edit-image")]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "as bought 2 2 $0.0375 $0.075" in shown
    assert f"{QWEN} 1 1 1" in shown
    assert f"{QWEN} rejects 'A page of a picture book." in shown
    assert (
        "at most 800 characters are allowed, it has 910; models that accept it, cheapest first: flux/schnell" in shown
    )
    assert f"{QWEN} does not take these fields or values, which are left out: safety_setting (1 prompt)." in shown
    assert (
        "rejects 'A page of a picture book. A page of a picture book. A page …' and 1 more: reve/edit-image needs"
        in shown
    )


def test_a_prompt_counts_once_however_many_runs_used_it(replay: Any, past: Path) -> None:
    for day in range(3):
        store_images(past, ["A lighthouse", {"prompt": "A lighthouse", "aspect_ratio": "16:9"}], run_id=f"day{day}")
    quote = replay(past, *models(FLUX))[1]["quote"]

    assert (quote["prompts"], quote["models"][0]["images"]) == (2, 2)


def test_the_shape_is_read_from_the_image_if_it_was_not_requested_or_nothing_else_tells_it(
    replay: Any, past: Path, tmp_path: Path
) -> None:
    items = [{"prompt": ratio, "aspect_ratio": ratio} for ratio in ("16:9", "4:3", "1:1", "9:16")]
    store_images(past, [*items, "none"], has_metadata=False)
    status, report = replay(past, *models("blackforestlabs/flux-2"), "--buy", "--sample", 9, "--output", tmp_path / "o")

    assert (status, report["sample"]["made"]) == (0, 5)
    assert "5 of 5 prompts: some of their fields are unknown" in report["quote"]["notes"][0]
    lines = [json.loads(line) for line in (tmp_path / "o" / "metadata.jsonl").read_text().splitlines()]
    assert {line["prompt"]: round(line["width"] / line["height"], 1) for line in lines} == {
        "16:9": 1.8,
        "4:3": 1.3,
        "1:1": 1.0,
        "9:16": 0.6,
        "none": 1.0,
    }


@pytest.mark.parametrize(
    ("image_format", "length", "is_complete"), [("png", 2_000, True), ("png", 2_001, False), ("jpeg", 9, False)]
)
def test_a_field_that_the_metadata_does_not_hold_in_full_is_never_sent(
    image_format: str,
    length: int,
    is_complete: bool,
    replay: Any,
    run_dag: Any,
    sandbox: Sandbox,
    past: Path,
    tmp_path: Path,
) -> None:
    negative = ("no text, " * 300)[:length]
    with DAG("postcards", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            model="alibaba/qwen-image",
            prompt=[{"prompt": "A lighthouse", "negative_prompt": negative}],
            output_path=str(past),
            image_format=image_format,
            provenance={"notes": ["&" * 1_900] * 8},  # too long for a JPEG
        )
    assert run_dag(dag).state == "success"
    out = tmp_path / "out"
    status, report = replay(past, *models("stable-diffusion-v35-large"), "--buy", "--output", out)

    assert status == 0
    sent = sandbox.seen("/v1/images/generations")[-1].json
    assert sent.get("negative_prompt") == (negative if is_complete else None)
    assert any("1 of 1 prompts: some of their" in note for note in report["quote"]["notes"]) != is_complete


def test_fields_are_known_if_only_the_prompt_was_left_out_of_the_metadata(
    replay: Any, run_dag: Any, past: Path
) -> None:
    with DAG("postcards", schedule=None) as dag:
        item = {"prompt": "A lighthouse", "aspect_ratio": "4:3"}
        ImagenGenerateOperator(task_id="paint", prompt=[item], output_path=str(past), provenance={"prompt": None})
    assert run_dag(dag).state == "success"
    quote = replay(past, *models(GPT))[1]["quote"]

    assert "aspect_ratio" in quote["models"][0]["rejected"][0]["reason"]
    assert not any("unknown" in note for note in quote["notes"])


@pytest.mark.parametrize("query", ["", "?signature=1"])
def test_images_made_from_input_images_are_rejected(query: str, replay: Any, past: Path, tmp_path: Path) -> None:
    url = f"https://example.com/cat.png{query}"
    store_images(past, [{"prompt": "Make it night", "model": "reve/edit-image", "image_url": url}])
    status, report = replay(past, *models(FLUX), "--buy", "--output", tmp_path / "out")

    assert status == 1
    assert "sample" not in report
    (rejected,) = report["quote"]["models"][0]["rejected"]
    assert rejected["reason"] == "it was generated from input images, which a manifest does not hold"


def test_without_a_connection_the_last_known_prices_are_used(
    replay: Any, past: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_images(past, ["A lighthouse"])
    monkeypatch.delenv("AIRFLOW_CONN_IMAGEN_DEFAULT")
    status, report = replay(past, *models(FLUX))

    assert (status, report["quote"]["models"][0]["usd_source"]) == (0, "last known")
    assert "last known ones" in report["quote"]["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("{past}", "--model", "flux/dve"), "not in the catalogue; did you mean flux/dev"),
        (("{past}", "--model", FLUX, "--sample", "0"), "--sample 0: a whole number of at least 1 is allowed"),
        (("{past}", "--model", FLUX, "--max-usd", "nan"), "--max-usd nan: a number of USD above 0 is allowed"),
        (("{past}/nowhere", "--model", FLUX), "there is no manifest at {past}/nowhere/metadata.jsonl"),
        (("{past}/x.jsonl", "--model", FLUX), "there is no manifest at {past}/x.jsonl"),
        (("{past}/run-000-0.png", "--model", FLUX), "there is no manifest at {past}/run-000-0.png/metadata.jsonl"),
        (("{past}/empty.jsonl", "--model", FLUX), "{past}/empty.jsonl lists no image with a prompt"),
        (("nosuch://bucket", "--model", FLUX), "MANIFEST='nosuch://bucket'"),
        (("{past}", "--model", FLUX, "--buy", "--output", "nosuch://bucket"), "--output='nosuch://bucket'"),
        (("{past}", "--model", FLUX, "--buy", "--output", "{past}/metadata.jsonl/x"), "metadata.jsonl"),
        *(
            (("{past}", "--model", FLUX, "--buy", "--output", "{past}/out", "--max-usd", cap), f"--max-usd {cap}")
            for cap in ("-1.0", "0.0", "inf")
        ),
        (("{past}", "--model", FLUX, "--buy", "--output", "{past}/out", "--imagen-conn-id", "other"), "'other'"),
    ],
)
def test_a_wrong_argument_costs_nothing(
    arguments: tuple[str, ...], problem: str, sandbox: Sandbox, past: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_images(past, ["A lighthouse"])
    (past / "empty.jsonl").write_text("\n{}\n")
    assert main(["replay", *(argument.format(past=past) for argument in arguments)]) == 2
    shown = capsys.readouterr()
    assert problem.format(past=past) in shown.err
    assert shown.out == "" or "--max-usd" not in arguments  # a wrong number is reported before the quote
    assert len(sandbox.ledger()) == 1


def test_its_page_shows_what_the_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_images(
        tmp_path / "book",
        [
            {"prompt": "A bear finds a mitten", "enhance_prompt": True, "num_images": 3},
            {"prompt": "The bear asks the fox whose mitten it is", "aspect_ratio": "4:3"},
            "The cover: a bear with one mitten",
        ],
    )
    monkeypatch.chdir(tmp_path)
    command, _, shown = shown_commands("replay").removeprefix("$ airflow-imagen ").partition("\n")

    assert main(command.split()) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in printed if line] == [line for line in shown.splitlines() if line]


def test_its_page_shows_the_error_for_a_long_prompt() -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        ImagenHook().quote("x" * 900)
    assert str(caught.value).partition(": ")[2] in shown_commands("long prompt")


# --- the sample -------------------------------------------------------------------------------------------------------


def test_a_sample_is_stored_counted_and_shown(replay: Any, sandbox: Sandbox, past: Path, tmp_path: Path) -> None:
    hostile = "A </td><script>alert(1)</script> {{ 7 * 7 }} \u202e lighthouse"
    store_images(past, [{"prompt": hostile, "num_images": 2}, {"prompt": "A harbour", "aspect_ratio": "4:3"}, "A", "B"])
    before = sandbox.ledger()
    out = tmp_path / "out"
    status, report = replay(past, *models(FLUX, GPT), "--buy", "--sample", 2, "--output", out)

    bought = sandbox.ledger()[len(before) :]
    assert status == 0
    assert Counter((charge.prompt, charge.model, charge.images) for charge in bought) == {
        (hostile, FLUX, 1): 1,
        (hostile, GPT, 1): 1,
        ("A harbour", FLUX, 1): 1,
    }
    assert report["sample"]["usd_spent"] == pytest.approx(sum(float(charge.usd) for charge in bought))
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert sorted(line["model"] for line in lines) == [FLUX, FLUX, GPT]
    assert all((out / line["file_name"]).is_file() for line in lines)
    page = (out / "replay.html").read_text()
    assert sandbox.api_key not in page + json.dumps(report)
    assert report["sample"]["page"] == str(out / "replay.html")
    assert "<script" not in page
    assert "\u202e" not in page
    assert "A &lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} lighthouse" in page
    assert page.count('src="data:image/webp;base64,') == 5  # two from the past, three new
    assert "Rejected before paying: aspect_ratio" in page
    assert "$0.066" in page


def test_the_page_shows_what_a_reused_image_cost_when_it_was_bought(replay: Any, past: Path, tmp_path: Path) -> None:
    store_images(past, ["A lighthouse"])
    rewrite(past, lambda line: line.update(usd=0, usd_saved=0.0777, reused_from="/elsewhere/a.png"))
    assert replay(past, *models(FLUX), "--buy", "--output", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "replay.html").read_text().count("$0.0777") == 2


def test_the_same_command_buys_nothing_again_and_a_larger_sample_only_the_rest(
    replay: Any, sandbox: Sandbox, past: Path, tmp_path: Path
) -> None:
    store_images(past, ["A", "B", "C"])
    command = (past, *models(FLUX, GPT), "--buy", "--output", tmp_path / "out")
    assert replay(*command, "--sample", 1)[0] == 0
    assert len(sandbox.ledger()) == 3 + 2

    status, report = replay(*command, "--sample", 1)
    assert (status, report["sample"]["made"], report["sample"]["adopted"]) == (0, 2, 2)
    assert len(sandbox.ledger()) == 3 + 2

    status, report = replay(*command, "--sample", 3)
    assert (status, report["sample"]["made"], report["sample"]["adopted"]) == (0, 6, 2)
    assert set(charges(sandbox).values()) == {1}
    assert len(sandbox.ledger()) == 3 + 6


def test_an_image_of_another_sample_in_the_folder_is_logged_as_no_longer_requested(
    replay: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for prompt in ("A fox", "A bear"):
        caplog.clear()
        store_images(tmp_path / prompt, [prompt])
        assert replay(tmp_path / prompt, *models(FLUX), "--buy", "--output", tmp_path / "out")[0] == 0

    old, new = (record.message for record in caplog.records if record.name.endswith(".progress"))
    assert old.startswith(f"No longer requested: 000-{FLUX} (")
    assert new.startswith(f"Image 1 of 1: 000-{FLUX} (")


def test_a_failed_image_is_reported_and_the_next_call_buys_only_that(
    replay: Any, sandbox: Sandbox, past: Path, tmp_path: Path
) -> None:
    store_images(past, ["A", "B"])
    sandbox.add_fault(Fault("upstream_4xx", prompt="B", model=GPT))
    command = (past, *models(FLUX, GPT), "--buy", "--output", tmp_path / "out")
    status, report = replay(*command)

    assert (status, report["sample"]["made"], report["sample"]["failed"]) == (1, 3, 1)
    assert [failure["name"] for failure in report["sample"]["failures"]] == [f"001-{GPT}"]
    assert "Not generated" not in (tmp_path / "out" / "replay.html").read_text()
    assert replay(*command)[0] == 0
    assert set(charges(sandbox).values()) == {1}


def test_a_cap_stops_before_it_is_exceeded(replay: Any, sandbox: Sandbox, past: Path, tmp_path: Path) -> None:
    store_images(past, ["A", "B"])
    status, report = replay(past, *models(FLUX, GPT), "--buy", "--output", tmp_path / "out", "--max-usd", 0.05)

    assert (status, report["sample"]["not_sent"]) == (1, 4)
    assert len(sandbox.ledger()) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_purchase_continues_without_paying_again(
    number: signal.Signals, status: int, replay: Any, sandbox: Sandbox, past: Path, tmp_path: Path
) -> None:
    store_images(past, [f"Prompt {index}" for index in range(6)])
    before = len(sandbox.ledger())
    sandbox.configure(latency_seconds=3)
    sent = len(sandbox.seen("/v1/images/generations"))
    arguments = [str(past), *models(FLUX, GPT), "--buy", "--sample", "6", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "airflow_provider_imagen.cli", "replay", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while len(sandbox.seen("/v1/images/generations")) < sent + 4 and process.poll() is None:  # as many as in flight
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    if number == signal.SIGINT:
        assert "What was paid for is kept" in errors
        kept = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
        assert len(kept) == len(sandbox.ledger()) - before == 4

    sandbox.configure(latency_seconds=0)
    _, report = replay(*arguments)
    summary = report["sample"]
    assert set(charges(sandbox).values()) == {1}
    assert len(sandbox.ledger()) - before == 12
    lost = 4 if number == signal.SIGKILL else 0  # responses that were lost with the process are reported
    assert (summary["made"], summary["failed"]) == (12 - lost, lost)
    spent = sum(float(charge.usd) for charge in sandbox.ledger()[before:])
    assert summary["usd_spent"] == pytest.approx(spent)


@pytest.mark.slow
@pytest.mark.parametrize("head_start_seconds", [0, 1.5])  # both before sending, and one in the middle
def test_two_purchases_into_one_folder_at_the_same_time_pay_once(
    head_start_seconds: float, sandbox: Sandbox, past: Path, tmp_path: Path
) -> None:
    store_images(past, [f"Prompt {index}" for index in range(6)])
    before = len(sandbox.ledger())
    sandbox.configure(latency_seconds=1)
    command = [sys.executable, "-m", "airflow_provider_imagen.cli", "replay", str(past), *models(FLUX, GPT)]
    command += ["--buy", "--sample", "6", "--output", str(tmp_path / "out"), "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(head_start_seconds)
    second = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    statuses = (first.wait(timeout=100), second.returncode)

    assert 0 in statuses
    charged = Counter((charge.prompt, charge.model) for charge in sandbox.ledger()[before:])
    assert (len(charged), set(charged.values())) == (12, {1})


def test_folders_may_be_in_an_object_store(
    replay: Any, sandbox: Sandbox, past: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attach("memory", fs=fsspec.filesystem("memory"))
    store_images(past, ["A lighthouse"])
    output = f"memory://{past.parent.name}"
    status, report = replay(past, *models(FLUX), "--buy", "--output", output)
    assert (status, report["sample"]["made"], report["sample"]["page"]) == (0, 1, f"{output}/replay.html")

    assert replay(past, *models(FLUX), "--buy", "--output", output)[1]["sample"]["adopted"] == 1
    assert len(sandbox.ledger()) == 2

    status, report = replay(f"{output}/metadata.jsonl", *models(GPT))
    assert (status, report["quote"]["usd"], report["quote"]["models"][0]["images"]) == (0, 0.033, 1)
    assert main(["whois", f"{output}/000-flux-dev.jpg", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["evidence"], row["dag_id"], row["prompt"]) == ("digest", "airflow-imagen", "A lighthouse")


# --- manifests from outside -------------------------------------------------------------------------------------------


def test_a_hostile_manifest_is_data(replay: Any, sandbox: Sandbox, past: Path, tmp_path: Path) -> None:
    store_images(past, ["A", "B", "C", "D"])
    values: list[dict[str, Any]] = [
        {"prompt": ["a", "list"], "usd": -1, "width": "wide"},
        {"model": "no/such-model", "seed": 10**400, "prompt_index": -5, "width": -1, "height": 0},
        {"file_name": "../../etc/passwd", "thumbnail": "/etc/passwd"},
        {"prompt": "\ud800", "created_at": 5},
    ]
    rewrite(past, lambda line: line.update(values[line["prompt_index"]]))
    with (past / "metadata.jsonl").open("ab") as manifest:
        manifest.write(b'\xff\xfe\n[1]\n{"file_name": "x.png", "prompt": "   "}\n' + b"[" * 10_000 + b"\n")
    status, report = replay(past, *models(FLUX), "--buy", "--sample", 9, "--output", tmp_path / "out")

    assert (status, report["quote"]["prompts"]) == (0, 2)
    assert sorted(charge.prompt for charge in sandbox.ledger()[4:]) == ["B"]
