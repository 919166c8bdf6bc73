from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest
import requests

from airflow_provider_imagen.cli import main


def start(*options):
    return subprocess.Popen(
        [sys.executable, "-m", "airflow_provider_imagen.cli", "sandbox", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("", {}),
        (
            "--latency 0.5 --requests-per-minute 30 --counting bucket --burst 4 --max-concurrent 2 --retry-after",
            {
                "latency_seconds": 0.5,
                "requests_per_minute": 30.0,
                "counting": "bucket",
                "burst": 4,
                "max_concurrent": 2,
                "tells_retry_after": True,
            },
        ),
    ],
)
def test_options_become_settings_and_the_rest_keep_their_defaults(options, changed):
    process = start(*options.split())
    try:
        url = process.stdout.readline().split()[1]
        settings = requests.get(f"{url}/_sandbox/settings", timeout=5).json()
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)

    defaults = {
        "balance_usd": "100",
        "latency_seconds": 0.0,
        "picture_scale": 1.0,
        "requests_per_minute": None,
        "counting": "sliding",
        "burst": 1,
        "max_concurrent": None,
        "tells_retry_after": False,
    }
    assert {name: settings[name] for name in defaults} == {**defaults, **changed}
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--burst 0", "Error: burst=0; allowed: 1 or more"),
        ("--latency nan", "Error: latency_seconds=nan; allowed: 0 or more"),
        ("--counting weekly", "Error: counting='weekly'; allowed: sliding, fixed, bucket"),
        ("--port 65536", "Error: port=65536; allowed: 0 to 65535"),
    ],
)
def test_a_value_out_of_range_is_one_line(capsys, options, message):
    assert main(["sandbox", *options.split()]) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert main(["sandbox", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
