"""Charge lookup through the real client, against an API whose clock is off."""

from __future__ import annotations

import threading
import time

import pytest

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.download.downloader import Downloader
from airflow_provider_imagen.exceptions import AuthenticationError, LostAnswerError, StoppedError
from airflow_provider_imagen.run.api_adapter import ApiAdapter
from airflow_provider_imagen.run.charge_lookup import ChargeLookup
from airflow_provider_imagen.sandbox import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

PATH = "/v1/images/generations"


@pytest.fixture
def make_client(sandbox):
    clients = []

    def make(**changed):
        settings = {"base_url": sandbox.url, "api_key": sandbox.api_key} | changed
        clients.append(ApiClient(ClientSettings(**settings)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client):
    return make_client()


def send(client, name):
    client.generate(PATH, {"model": "imagen-3.0-generate-002", "prompt": name}, client_request_id=name)


def lose(client, sandbox, name, *, billed):
    """Send a request whose response is lost, and return when it was sent and when it was given up."""
    sandbox.add_fault(Fault("reset", billed=billed, prompt=name, logged=billed))
    sent_at = time.time()
    with pytest.raises(LostAnswerError):
        send(client, name)
    return {"sent_at": sent_at, "lost_at": time.time()}


def lookup(client, *, patience=5.0, wait=time.sleep):
    api = ApiAdapter(client=client, downloader=Downloader(allow_private_hosts=True))
    return ChargeLookup(
        iter_request_logs=api.iter_request_logs,
        wait=wait,
        patience_seconds=patience,
        clock_offset_seconds=lambda: api.clock_offset_seconds,
    )


@pytest.mark.parametrize("skew", [-10_800, -600, 0, 600, 10_800])
def test_a_lost_response_is_found_whatever_the_clock_of_the_api(sandbox, client, skew):
    """The first response ever received is that of the log."""
    sandbox.configure(clock_skew_seconds=skew, log_lag_seconds=0.5)
    billed = lose(client, sandbox, "billed", billed=True)
    assert client.clock_offset_seconds is None
    charge = lookup(client).find("billed", **billed)
    assert charge.billed
    assert charge.usd == sandbox.ledger()[0].usd
    unbilled = lose(client, sandbox, "unbilled", billed=False)
    assert lookup(client, patience=1.0).find("unbilled", **unbilled) is None


@pytest.mark.slow
@pytest.mark.parametrize("places", [(0, 119), (10, 60)])
def test_two_lost_responses_are_found_among_many_requests_by_another_process(sandbox, make_client, places):
    sandbox.configure(clock_skew_seconds=-10_800)
    lost, client = {}, make_client()
    for number in range(120):
        if number in places:
            lost[f"r{number}"] = lose(client, sandbox, f"r{number}", billed=True)["sent_at"]
        else:
            send(client, f"r{number}")
    found = lookup(make_client()).look_once(lost)
    assert found.keys() == lost.keys()
    assert len(sandbox.seen("/v2/logs")) == 3  # one with an empty window to learn the time, and two pages


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", path="/v2/logs", status=429, retry_after=1.5),
        Fault("status", path="/v2/logs", status=500),
        Fault("html", path="/v2/logs", status=504),
        Fault("html", path="/v2/logs", status=200),
        Fault("reset", path="/v2/logs"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_a_log_that_fails_briefly_is_read_again(sandbox, client, fault):
    lost = lose(client, sandbox, "a", billed=True)
    sandbox.add_fault(fault)
    began = time.monotonic()
    assert lookup(client).find("a", **lost).billed
    assert time.monotonic() - began >= (fault.retry_after or 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_log_that_refuses_the_key_leaves_the_outcome_unknown_at_once(sandbox, client, status):
    lost = lose(client, sandbox, "a", billed=True)
    sandbox.add_fault(Fault("status", path="/v2/logs", status=status))
    with pytest.raises(AuthenticationError):
        lookup(client).find("a", **lost)
    assert len(sandbox.seen("/v2/logs")) == 1


def test_a_late_charge_is_found_by_the_next_lookup(sandbox, client):
    sandbox.configure(clock_skew_seconds=10_800, log_lag_seconds=600)
    lost = lose(client, sandbox, "a", billed=True)
    assert lookup(client, patience=0.2).find("a", **lost) is None
    sandbox.configure(log_lag_seconds=0)
    assert lookup(client).look_once({"a": lost["sent_at"]})["a"].billed


def test_a_cancelled_task_stops_reading_the_log(sandbox, client):
    lost = lose(client, sandbox, "a", billed=False)
    send(client, "b")
    cancelled = threading.Event()
    cancelled.set()

    def wait(seconds):
        if cancelled.is_set():
            raise StoppedError("The task was cancelled.")

    with pytest.raises(StoppedError):
        lookup(client, wait=wait).find("a", **lost)
