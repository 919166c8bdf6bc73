from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from airflow_provider_imagen.sandbox import Fault, Sandbox, SandboxControl, embedded, serve

from .conftest import IMAGEN

ROOT = Path(__file__).parents[2]


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT, timeout=60, **options
    )


def post(sandbox, **body):
    return requests.post(
        f"{sandbox.url}/v1/images/generations",
        json={"model": IMAGEN, "prompt": "x"} | body,
        headers={"Authorization": f"Bearer {sandbox.api_key}"},
        timeout=30,
    )


def test_importing_the_sandbox_loads_no_framework():
    done = run("""
        import sys
        from airflow_provider_imagen.sandbox import Fault, Sandbox, SandboxControl
        Fault("reset"), Sandbox(), SandboxControl("http://127.0.0.1:1")
        heavy = {"starlette", "uvicorn", "PIL", "requests", "asyncio", "urllib.request", "airflow"}
        print(sorted(heavy & set(sys.modules)))
    """)

    assert done.stdout.strip() == "[]", done.stderr


def test_the_sandbox_shares_only_the_format_of_money_with_the_client():
    allowed = ("airflow_provider_imagen.sandbox", "airflow_provider_imagen.money")
    for module in (ROOT / "airflow_provider_imagen" / "sandbox").glob("*.py"):
        text = module.read_text(encoding="utf-8")
        imported = {
            line.split()[1] for line in text.splitlines() if line.strip().startswith(("from airflow", "import airflow"))
        }
        assert all(name.startswith(allowed) for name in imported), module.name


def test_it_starts_in_well_under_a_second_and_stops():
    with Sandbox():
        pass  # loads the framework
    began = time.monotonic()
    with Sandbox() as sandbox:
        assert time.monotonic() - began < 0.5
        assert requests.get(f"{sandbox.url}/v1/models", timeout=5).status_code == 200
        url = sandbox.url
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/v1/models", timeout=5)


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("slow", seconds=60), Fault("slow_after_billing", seconds=60)])
def test_closing_does_not_wait_for_requests_and_logs_nothing(fault, caplog):
    sandbox = Sandbox().start()
    sandbox.add_fault(fault)
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO):
        waiting = pool.submit(post, sandbox)
        while not sandbox.seen():
            time.sleep(0.01)
        time.sleep(0.1)
        began = time.monotonic()
        sandbox.close()
        assert time.monotonic() - began < 2
        assert isinstance(waiting.exception(timeout=5), requests.ConnectionError)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_closing_and_starting_twice_is_harmless():
    sandbox = Sandbox(picture_scale=0.1)
    assert sandbox.start() is sandbox.start()
    sandbox.close()
    sandbox.close()
    with sandbox:
        assert requests.get(post(sandbox).json()["data"][0]["url"], timeout=10).status_code == 200


def test_a_process_exits_cleanly_without_closing():
    done = run("""
        from airflow_provider_imagen.sandbox import Fault, embedded
        import requests
        sandbox = embedded()
        sandbox.add_fault(Fault("slow", seconds=30))
        try:
            requests.post(sandbox.url + "/v1/images/generations", json={"model": "recraft-v3", "prompt": "x"},
                          headers={"Authorization": "Bearer " + sandbox.api_key}, timeout=0.2)
        except requests.ReadTimeout:
            print("left")
    """)

    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_a_port_in_use_is_an_oserror():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            Sandbox(port=taken.getsockname()[1]).start()


def test_chosen_ports_are_used():
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    with Sandbox(port=ports[0], cdn_port=ports[1]) as sandbox:
        assert (sandbox.url, sandbox.cdn_url) == tuple(f"http://127.0.0.1:{port}" for port in ports)


@pytest.mark.parametrize(
    "options",
    [
        {"picture_scale": 0},
        {"picture_scale": 2},
        {"picture_scale": float("nan")},
        {"latency_seconds": -1},
        {"latency_seconds": float("inf")},
        {"latency_seconds": "1"},
        {"latency_seconds": None},
        {"requests_per_minute": -1},
        {"requests_per_minute": float("nan")},
        {"max_concurrent": -1},
        {"logs_per_minute": -1},
        {"burst": True},
        {"balance_usd": "much"},
        {"balance_usd": Decimal("NaN")},
        {"port": 65536},
        {"cdn_port": -1},
        {"colour": "red"},
        {"balance_usd": -1},
        {"clock_skew_seconds": 4e7},
        {"clock_skew_seconds": float("nan")},
    ],
)
def test_settings_out_of_range_are_rejected(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}.*; allowed"):
        Sandbox(**options)


@pytest.mark.parametrize("settings", [{"balance_usd": "NaN"}, {"latency_seconds": "1"}, {"burst": 0}])
def test_settings_out_of_range_are_rejected_over_http_and_change_nothing(sandbox, settings):
    control = SandboxControl(sandbox.url)
    with pytest.raises(ValueError, match="allowed"):
        control.configure(seed=5, **settings)

    assert requests.get(f"{sandbox.url}/_sandbox/settings", timeout=5).json()["seed"] == 0


def test_it_does_not_touch_the_logging_of_the_process(caplog):
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    with caplog.at_level(logging.DEBUG), Sandbox() as sandbox:
        sandbox.add_fault(Fault("reset"))
        with pytest.raises(requests.ConnectionError):
            post(sandbox)
        assert post(sandbox).status_code == 200

    assert [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers] == before
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_64_concurrent_clients_are_each_served_and_billed_once(sandbox):
    sandbox.configure(latency_seconds=0.2)
    gate = threading.Barrier(64)

    def client(number):
        gate.wait()
        answer = requests.post(
            f"{sandbox.url}/v1/images/generations",
            json={"model": IMAGEN, "prompt": f"picture {number % 8}", "seed": number % 8},
            headers={"Authorization": f"Bearer {sandbox.api_key}", "X-Client-Request-Id": f"id-{number}"},
            timeout=30,
        )
        return requests.get(answer.json()["data"][0]["url"], timeout=30).content

    began = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        pictures = list(pool.map(client, range(64)))

    assert time.monotonic() - began < 10
    assert all(pictures[number] == pictures[number % 8] for number in range(64))
    assert len(set(pictures)) == 8
    assert sorted(charge.client_request_id for charge in sandbox.ledger()) == sorted(f"id-{n}" for n in range(64))
    assert sandbox.balance_usd == Decimal(100) - 64 * Decimal("0.042")


def test_concurrent_requests_cannot_overdraw_the_account(sandbox):
    sandbox.configure(latency_seconds=0.2, balance_usd=Decimal("0.42"))
    with ThreadPoolExecutor(30) as pool:
        statuses = list(pool.map(lambda _: post(sandbox).status_code, range(30)))

    assert sorted(statuses) == [200] * 10 + [403] * 20
    assert sandbox.balance_usd == 0


def test_300_open_connections_do_not_stop_it(sandbox):
    host, port = sandbox.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(300)]
    try:
        assert post(sandbox).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_the_embedded_sandbox_is_one_per_process():
    done = run("""
        import threading
        from airflow_provider_imagen.sandbox import embedded
        found = []
        threads = [threading.Thread(target=lambda: found.append(embedded())) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(len(set(map(id, found))), found[0].url.startswith("http://127.0.0.1:"))
    """)

    assert done.stdout.split() == ["1", "True"], done.stderr


def test_a_forked_child_starts_its_own_embedded_sandbox():
    done = run("""
        import os, warnings
        warnings.simplefilter("ignore")
        from airflow_provider_imagen.sandbox import embedded
        import requests
        parent = embedded()
        child = os.fork()
        if child == 0:
            own = embedded()
            ok = own.url != parent.url and requests.get(own.url + "/v1/models", timeout=5).ok
            ok = ok and requests.get(parent.url + "/v1/models", timeout=5).ok
            parent.close()  # harmless: it belongs to the other process
            os._exit(0 if ok else 1)
        _, status = os.waitpid(child, 0)
        alive = requests.get(parent.url + "/v1/models", timeout=5).ok
        print(os.waitstatus_to_exitcode(status), alive, embedded() is parent)
    """)

    assert done.stdout.split() == ["0", "True", "True"], done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_a_signal_and_exits_cleanly(number):
    code = """
        from airflow_provider_imagen.sandbox import serve
        serve(port=0, picture_scale=0.1, on_ready=lambda sandbox: print(sandbox.url, flush=True))
        print("ended", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = process.stdout.readline().strip()
    assert requests.get(f"{url}/v1/models", timeout=5).status_code == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=10)

    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_serve_in_a_thread_does_not_touch_signals():
    before = signal.getsignal(signal.SIGTERM)
    ready = threading.Event()
    threading.Thread(target=serve, kwargs={"on_ready": lambda sandbox: ready.set()}, daemon=True).start()

    assert ready.wait(10)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sandbox_can_be_controlled_over_http(sandbox, clock):
    control = SandboxControl(f"{sandbox.url}/")
    assert (control.api_key, control.cdn_url) == (sandbox.api_key, sandbox.cdn_url)

    control.add_fault(Fault("status", status=503, times=None, prompt="fox"))
    control.configure(balance_usd=Decimal("7.5"), latency_seconds=0.01)
    assert post(sandbox, prompt="a fox").status_code == 503
    assert post(sandbox, prompt="a cat").status_code == 200
    control.clear_faults()
    assert post(sandbox, prompt="a fox").status_code == 200

    assert control.ledger() == sandbox.ledger()
    assert sandbox.balance_usd == Decimal("7.5") - Decimal("0.084")
    seen = control.seen("/v1/images/generations")
    assert seen == sandbox.seen("/v1/images/generations")
    assert [(one.host, one.method, one.status, one.json["prompt"]) for one in seen] == [
        ("api", "POST", 503, "a fox"),
        ("api", "POST", 200, "a cat"),
        ("api", "POST", 200, "a fox"),
    ]

    control.configure(clock_skew_seconds=-600)
    date = requests.get(f"{sandbox.url}/v1/models", timeout=5).headers["date"]
    assert date == formatdate(clock.now - 600, usegmt=True)

    control.reset()
    assert control.ledger() == control.seen() == []
    assert sandbox.balance_usd == 100


def test_an_invalid_fault_or_setting_over_http_is_a_valueerror(sandbox):
    control = SandboxControl(sandbox.url)
    bad = Fault("reset")
    object.__setattr__(bad, "kind", "explode")

    with pytest.raises(ValueError, match="kind='explode'; allowed: status"):
        control.add_fault(bad)
    with pytest.raises(ValueError, match="no setting colour"):
        control.configure(colour="red")


def test_seen_requests_record_what_was_sent(sandbox):
    requests.get(f"{sandbox.url}/v2/logs?status=failed&status=succeeded", headers={"X-Thing": "1"}, timeout=5)
    (seen,) = sandbox.seen()

    assert seen.path == "/v2/logs"
    assert seen.query == {"status": ["failed", "succeeded"]}
    assert seen.headers["x-thing"] == "1"
    assert (seen.status, seen.json, seen.client_request_id) == (401, None, None)


def test_embedded_returns_a_working_sandbox_in_this_process():
    sandbox = embedded()

    assert embedded() is sandbox
    assert os.getpid() == sandbox._pid
    assert requests.get(f"{sandbox.url}/v1/models", timeout=5).status_code == 200


# --- web pages elsewhere ----------------------------------------------------------------------------------------------

BODY = '{"model": "imagen-3.0-generate-002", "prompt": "a red fox"}'
POSTS = ["/_sandbox/reset", "/_sandbox/settings", "/_sandbox/faults", "/v1/images/generations", "/v1/images/edits"]


def post_to(sandbox, path, body=BODY, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(
        f"{sandbox.url}{path}", data=body, headers={"Authorization": f"Bearer {sandbox.api_key}", **names}, timeout=10
    )


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"])
def test_cross_origin_posts_change_nothing(sandbox, path, kind):
    sandbox.add_fault(Fault("status", status=400))

    assert post_to(sandbox, path, Content_Type=kind).status_code == 403
    assert post_to(sandbox, path, "", Content_Type=kind).status_code == 403
    assert len(requests.get(f"{sandbox.url}/_sandbox/faults", timeout=10).json()) == 1
    assert sandbox.seen() == []


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.localhost.example", "null", "http://10.0.0.1", ""]
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_cross_origin_requests_are_rejected(sandbox, origin, method):
    sandbox.add_fault(Fault("status", status=400))
    answer = requests.request(
        method, f"{sandbox.url}/_sandbox/faults", json={"kind": "status"}, headers={"Origin": origin}, timeout=10
    )

    assert answer.status_code == 403
    assert len(requests.get(f"{sandbox.url}/_sandbox/faults", timeout=10).json()) == 1


@pytest.mark.parametrize("origin", ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:80"])
def test_local_pages_may_post(sandbox, origin):
    assert post_to(sandbox, "/v1/images/generations", Content_Type="application/json", Origin=origin).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", "", "a@b"]
)
def test_a_host_name_rebound_to_loopback_is_rejected(sandbox, host):
    for url in (sandbox.url, sandbox.cdn_url):
        port = url.rpartition(":")[2]
        for path in ("/_sandbox/ledger", "/v1/models"):
            answer = requests.get(f"{url}{path}", headers={"Host": host.format(port=port)}, timeout=10)
            assert answer.status_code == 403
    assert sandbox.seen() == []


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:{port}", "imagen.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:80"]
)
def test_every_local_host_name_is_accepted(sandbox, host):
    port = sandbox.url.rpartition(":")[2]
    assert requests.get(f"{sandbox.url}/v1/models", headers={"Host": host.format(port=port)}, timeout=10).ok


def test_a_sandbox_off_loopback_accepts_any_host_name():
    with Sandbox(host="0.0.0.0") as open_to_all:
        answer = requests.get(f"{open_to_all.url}/v1/models", headers={"Host": "sandbox:8765"}, timeout=10)
        assert answer.ok
        assert post_to(open_to_all, "/_sandbox/reset", "{}", Content_Type="text/plain").status_code == 403
