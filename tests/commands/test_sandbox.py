from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import pytest
import requests
from doc_snippets import find_table, shown_commands

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.sandbox import Charge, Fault
from airflow_provider_imagen.sandbox.control_routes import control_routes
from airflow_provider_imagen.sandbox.fault_syntax import parse_fault
from airflow_provider_imagen.sandbox.faults import KINDS

COMMAND = [sys.executable, "-m", "airflow_provider_imagen.cli", "sandbox"]


@contextmanager
def running(*options):
    """Run the command, and return the URLs and the connection that it prints."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield [process.stdout.readline().split(maxsplit=1)[1].strip() for _ in range(3)]
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")


def error_of(*options, prefix=()):
    """Run the command, which fails, and return the line it writes to stderr."""
    done = subprocess.run([*prefix, *COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def generate(url, prompt="a red fox"):
    return requests.post(
        f"{url}/v1/images/generations",
        json={"model": "imagen-3.0-generate-002", "prompt": prompt},
        headers={"Authorization": "Bearer 5a9db0c5000000000000000000000000"},
        timeout=10,
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
    with running(*options.split()) as (url, *_):
        settings = requests.get(f"{url}/_sandbox/settings", timeout=5).json()

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--burst 0", "burst=0; allowed: 1 or more"),
        ("--burst 1.5", "burst=1.5; allowed: a whole number, 1 or more"),
        ("--latency nan", "latency_seconds=nan; allowed: 0 or more"),
        ("--latency soon", "latency_seconds='soon'; allowed: a number, 0 or more"),
        ("--counting slidding", "counting='slidding'; allowed: sliding, fixed, bucket; did you mean sliding?"),
        ("--port 65536", "port=65536; allowed: 0 to 65535"),
        ("--port -1", "port=-1; allowed: 0 to 65535"),
        ("--port 8765.0", "port=8765.0; allowed: 0 to 65535"),
        ("--port http", "port='http'; allowed: 0 to 65535"),
        (f"--cdn-port {10**400}", f"cdn_port={10**400}; allowed: 0 to 65535"),
        ("--fault statsu", f"--fault 'statsu': kind='statsu'; allowed: {', '.join(KINDS)}; did you mean status?"),
        ("--fault reset --fault status:status=42", "--fault 'status:status=42': status=42; allowed: 100 to 599"),
    ],
)
def test_an_invalid_option_is_one_line(capsys, options, message):
    assert main(["sandbox", *options.split()]) == 2
    assert capsys.readouterr().err == f"Error: {message}\n"


@pytest.mark.parametrize("option", ["--port", "--cdn-port"])
def test_a_port_in_use_is_one_line(option):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert error_of("--port", "0", option, str(port)) == (
            f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use"
        )


def test_the_same_port_twice_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    assert "Address already in use" in error_of("--port", port, "--cdn-port", port)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("203.0.113.1", "Cannot assign requested address"),  # of a network that is reserved for documentation
        ("::1%no-such-interface", "Name or service not known"),
        ("no..name", "Name or service not known"),
        ("ä..b", "Invalid host name"),
    ],
)
def test_a_host_that_is_not_this_machine_is_one_line(host, reason):
    assert error_of("--host", host) == f"Error: cannot listen on {host}, port 8765: {reason}"


def test_a_port_that_is_not_permitted_is_one_line():
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    as_somebody = ["setpriv", "--bounding-set=-net_bind_service"] if os.geteuid() == 0 else []
    if (limit.exists() and int(limit.read_text()) <= 1) or (as_somebody and shutil.which("setpriv") is None):
        pytest.skip("every port is permitted here")

    assert error_of("--port", "1", prefix=as_somebody) == (
        "Error: cannot listen on 127.0.0.1, port 1: Permission denied"
    )


def test_it_starts_with_the_faults_in_order():
    with running("--fault", "status:status=503,times=2", "--fault", "html:prompt=red fox") as (url, *_):
        faults = requests.get(f"{url}/_sandbox/faults", timeout=5).json()
        statuses = [generate(url).status_code for _ in range(4)]

    assert [Fault.from_json(each) for each in faults] == [
        Fault("status", status=503, times=2),
        Fault("html", prompt="red fox"),
    ]
    assert statuses == [503, 503, 502, 200]


def test_all_kinds_of_faults_are_listed_with_their_parameters(capsys):
    assert main(["sandbox", "--list-faults"]) == 0
    out = capsys.readouterr().out

    assert [name for name in KINDS if not re.search(rf"^ *{name} ", out, re.MULTILINE)] == []
    words = {word.strip(",").partition("=")[0] for word in out.split()}
    assert {parameter for kind in KINDS.values() for parameter in kind.parameters} - words == set()


def test_the_faults_on_its_page_are_valid():
    faults = re.findall(r"--fault (\S+)", shown_commands("sandbox: faults"))

    assert [parse_fault(text).kind for text in faults] == ["reset", "status", "cut_image"]


def test_its_page_shows_the_connection_that_it_prints():
    with running() as (url, _, connection):
        page = requests.get(url, timeout=10).text

    assert re.findall(r"<pre.*?>(.*)</pre>", unescape(page)) == [connection]


def test_its_page_lists_all_control_endpoints():
    routes = {f"{method} {route.path}" for route in control_routes() for method in route.methods - {"HEAD"}}

    assert {row[0].strip("`") for row in find_table("sandbox: endpoints")} == routes


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_commands_on_its_page_work(tmp_path):
    (tmp_path / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    with running() as (url, *_):
        generate(url)
        done = subprocess.run(
            ["bash", "-ec", shown_commands("sandbox: curl").replace("http://127.0.0.1:8765", url)],
            env={**os.environ, "CURL_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    answers, rest = [], done.stdout
    while rest:
        answer, end = json.JSONDecoder().raw_decode(rest)
        answers.append(answer)
        rest = rest[end:]
    faults, settings, charges, seen, no_faults, reset = answers
    assert [Fault.from_json(each) for each in faults] == [Fault("status", status=503, times=2)]
    assert (settings["latency_seconds"], settings["balance_usd"]) == (0.5, "10")
    assert [Charge.from_json(each).prompt for each in charges] == ["a red fox"]
    assert [request["json"]["prompt"] for request in seen] == ["a red fox"]
    assert (no_faults, reset) == ([], {})
