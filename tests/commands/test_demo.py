"""``airflow-imagen demo`` in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def demo(
    folder: Path, *arguments: str, connection: dict[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    if connection is not None:
        environment["AIRFLOW_CONN_IMAGEN_DEFAULT"] = json.dumps(connection)
    return subprocess.run(
        [sys.executable, "-m", "airflow_provider_imagen.cli", "demo", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_it_generates_images_and_prints_their_paths_and_costs(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A fox in the snow\n\nA heron at dusk\n")

    done = demo(
        tmp_path, "A raccoon eating ice-cream", "--prompts-file", "prompts.txt", "--aspect-ratio", "16:9", "--seed", "7"
    )

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "imagen-demo" / "metadata.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["A raccoon eating ice-cream", "A fox in the snow", "A heron at dusk"]
    for line in lines:
        assert f"  file  imagen-demo/{line['file_name']}\n" in done.stdout
        assert f"  url   {line['url']}\n" in done.stdout
        assert line["seed"] == 7
        with Image.open(tmp_path / "imagen-demo" / line["file_name"]) as picture:
            assert picture.size == (1408, 768)
    assert "Image 3 of 3" in done.stdout
    assert "3 images in imagen-demo for $0.126" in done.stdout
    assert done.stderr == ""
    assert "[info" not in done.stdout  # no Airflow log


def test_a_failure_is_one_clear_error_and_a_status(tmp_path: Path) -> None:
    done = demo(tmp_path, "A fox", "--num-images", "9")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: prompt[0].num_images='9': a whole number from 1 to 4 is allowed\n")
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_a_connection_in_the_environment_is_used(tmp_path: Path, imagen_sandbox) -> None:
    done = demo(
        tmp_path,
        "A fox",
        connection={"conn_type": "imagen", "host": imagen_sandbox.url, "password": imagen_sandbox.api_key},
    )

    assert done.returncode == 0, done.stderr
    assert [charge.prompt for charge in imagen_sandbox.ledger()] == ["A fox"]
    assert imagen_sandbox.api_key not in done.stdout + done.stderr


def test_a_missing_prompt_is_reported_before_airflow_starts(tmp_path: Path) -> None:
    done = demo(tmp_path)

    assert done.returncode == 2
    assert "no prompt" in done.stderr
