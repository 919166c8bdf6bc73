from __future__ import annotations

from base64 import urlsafe_b64encode as b64encode
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
import requests


@pytest.fixture
def get(sandbox, key):
    def ask(path, **query):
        return requests.get(f"{sandbox.url}{path}", params=query, headers=key, timeout=10)

    return ask


def test_the_key_endpoint_describes_the_key(get, sandbox):
    data = get("/v1/key").json()["data"]

    assert data["prefix"] == sandbox.api_key[:8]
    assert data["disabled"] is False
    assert "model:image" in data["scopes"]


@pytest.mark.parametrize("path", ["/v1/key", "/v2/billing", "/v2/billing/transactions", "/v2/logs?period=1h"])
def test_the_account_needs_a_key(sandbox, path):
    assert requests.get(f"{sandbox.url}{path}", timeout=10).status_code == 401


def test_the_balance_falls_by_the_charges(get, generate):
    generate(num_images=2)

    assert get("/v2/billing").json() == {"current_balance": 99.916, "currency": "USD"}


def test_the_legacy_balance_is_in_credits(get, generate):
    generate(num_images=2)

    answer = get("/v1/billing/balance").json()
    assert (answer["balance"], answer["lowBalance"]) == (199_832_000, False)


def test_usage_is_the_total_of_a_window(get, generate):
    generate(num_images=2)
    generate()

    answer = get("/v2/usage", period="1h").json()
    assert (answer["spend"], answer["currency"], answer["requests"]) == (0.126, "USD", 2)
    assert get("/v2/usage").status_code == 400


def test_the_usage_of_the_key_is_that_of_the_calendar_month(get, generate, sandbox):
    generate()
    assert get("/v1/key").json()["data"]["monthly_usage"] == 0.042
    sandbox.configure(clock_skew_seconds=31 * 86400)
    assert get("/v1/key").json()["data"]["monthly_usage"] == 0


def test_usage_can_lag_behind(get, generate, sandbox):
    sandbox.configure(usage_lag_seconds=30)
    generate()
    assert get("/v2/usage", period="1h").json()["spend"] == 0
    assert get("/v1/key").json()["data"]["monthly_usage"] == 0
    sandbox.configure(usage_lag_seconds=0)
    assert get("/v2/usage", period="1h").json()["spend"] == 0.042


def test_transactions_are_paged_newest_first(get, generate):
    ids = [generate().headers["x-inference-id"] for _ in range(5)]
    found, cursor = [], {}
    while True:
        page = get("/v2/billing/transactions", limit=2, **cursor).json()
        found += [entry["reference_id"] for entry in page["data"]]
        if not page["pagination"]["has_more"]:
            break
        cursor = {"cursor": page["pagination"]["next_cursor"]}

    assert found == ids[::-1]
    assert page["pagination"]["next_cursor"] is None
    assert page["data"][0]["amount"] == {"usd": 0.042, "credits": 84000}


def test_transactions_can_be_filtered_and_an_invalid_cursor_is_rejected(get, generate):
    generate()

    assert get("/v2/billing/transactions", direction="TOPUP").json()["data"] == []
    assert get("/v2/billing/transactions", type="BONUS").json()["data"] == []
    assert get("/v2/billing/transactions", **{"from": "2030-01-01T00:00:00Z"}).json()["data"] == []
    assert get("/v2/billing/transactions", cursor="nonsense").status_code == 400


def test_the_log_lists_every_request_with_its_outcome(get, generate):
    made = generate(headers={"X-Client-Request-Id": "good"})
    generate(headers={"X-Client-Request-Id": "bad"}, num_images=9)
    rows = {row["client_request_id"]: row for row in get("/v2/logs", period="1h").json()["data"]}

    assert rows["good"]["status"] == "succeeded"
    assert rows["good"]["cost"] == {"usd": 0.042, "credits": 84000}
    assert rows["good"]["inference_id"] == made.headers["x-inference-id"]
    assert rows["bad"]["status"] == "failed"
    assert rows["bad"]["cost"] == {"usd": 0.0, "credits": 0}


def test_a_request_appears_in_the_log_after_the_lag(get, generate, sandbox, clock):
    sandbox.configure(log_lag_seconds=30)
    generate()

    assert get("/v2/logs", period="1h").json()["data"] == []
    clock.now += 29
    assert get("/v2/logs", period="1h").json()["data"] == []
    clock.now += 1
    assert len(get("/v2/logs", period="1h").json()["data"]) == 1


def test_a_charge_appears_in_the_transactions_after_the_lag(get, generate, sandbox, clock):
    sandbox.configure(log_lag_seconds=30, clock_skew_seconds=3600)
    generate()

    assert get("/v2/billing/transactions").json()["data"] == []
    clock.now += 30
    assert len(get("/v2/billing/transactions").json()["data"]) == 1
    assert len(sandbox.ledger()) == 1


def test_the_log_is_paged_newest_first(get, generate, clock):
    for number in range(5):
        generate(headers={"X-Client-Request-Id": f"id-{number}"})
        clock.now += 1
    page = get("/v2/logs", period="1h", limit=2, offset=1).json()

    assert [row["client_request_id"] for row in page["data"]] == ["id-3", "id-2"]
    assert page["pagination"] == {"limit": 2, "offset": 1, "total": 5, "has_more": True}


def test_the_log_is_filtered_by_status_and_model(get, generate):
    generate()
    generate(model="openai/gpt-image-2")
    generate(num_images=7)

    def rows(**query):
        return len(get("/v2/logs", period="1h", **query).json()["data"])

    assert rows() == 3
    assert rows(status="failed") == 1
    assert rows(status=["failed", "succeeded"]) == 3
    assert rows(model="gpt-image-2") == 1
    assert rows(model="openai/gpt-image-2,imagen-3.0-generate-002") == 0


def test_the_log_accepts_a_window(get, generate, clock):
    clock.now += 3600
    generate()
    at = datetime.fromtimestamp(clock.now, UTC)

    def rows(start, end):
        return get("/v2/logs", start=start, end=end).json()["data"]

    assert len(rows(at.replace(minute=0, second=0).isoformat(), "2026-12-01T00:00:00Z")) == 1
    assert rows("2026-10-01T00:00:00", "2026-10-02T00:00:00") == []


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"period": "7w"},
        {"period": "0h"},
        {"period": "93d"},
        {"start": "2026-11-01T00:00:00Z"},
        {"period": "1h", "start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"},
        {"start": "2026-11-02T00:00:00Z", "end": "2026-11-01T00:00:00Z"},
        {"start": "2026-01-01T00:00:00Z", "end": "2026-11-01T00:00:00Z"},
        {"start": "yesterday", "end": "today"},
        {"period": "1h", "limit": 101},
        {"period": "1h", "limit": 0},
        {"period": "1h", "offset": -1},
        {"period": "1h", "status": "succeeded,failed"},
    ],
)
def test_the_log_rejects_undocumented_queries(get, query):
    assert get("/v2/logs", **query).status_code == 400


def test_the_log_can_be_limited_per_minute(get, sandbox, clock):
    sandbox.configure(logs_per_minute=2)

    assert [get("/v2/logs", period="1h").status_code for _ in range(3)] == [200, 200, 429]
    clock.now += 60
    assert get("/v2/logs", period="1h").status_code == 200


@pytest.mark.parametrize("skew", [-10_800, 600])
def test_clock_skew_applies_to_every_time_the_api_reports(get, generate, sandbox, clock, skew):
    sandbox.configure(clock_skew_seconds=skew)
    stated = datetime.fromtimestamp(clock.now + skew, UTC)
    answer = generate(headers={"X-Client-Request-Id": "r1"})
    refusal = generate(num_images=9)

    assert parsedate_to_datetime(answer.headers["date"]) == parsedate_to_datetime(refusal.headers["date"]) == stated
    assert datetime.fromisoformat(refusal.json()["timestamp"]) == stated
    assert datetime.fromisoformat(get("/v2/billing/transactions").json()["data"][0]["created_at"]) == stated
    assert [datetime.fromisoformat(row["created"]) for row in get("/v2/logs", period="1h").json()["data"]] == [
        stated
    ] * 2


def test_the_log_window_uses_the_skewed_clock(get, generate, sandbox, clock):
    sandbox.configure(clock_skew_seconds=10_800)
    generate()
    now = datetime.fromtimestamp(clock.now, UTC)

    def rows(start, end):
        window = {"start": now + timedelta(hours=start), "end": now + timedelta(hours=end)}
        return len(get("/v2/logs", **{name: at.isoformat() for name, at in window.items()}).json()["data"])

    assert rows(-1, 1) == 0
    assert rows(2, 4) == 1


def test_clock_skew_affects_neither_lag_nor_limits(get, generate, sandbox, clock):
    sandbox.configure(log_lag_seconds=30, logs_per_minute=2)
    generate()
    sandbox.configure(clock_skew_seconds=-10_800)
    clock.now += 30

    assert len(get("/v2/logs", period="1h").json()["data"]) == 0, "the row is of the future now"
    sandbox.configure(clock_skew_seconds=600)
    assert len(get("/v2/logs", period="1h").json()["data"]) == 1
    assert get("/v2/logs", period="1h").status_code == 429
    clock.now += 60
    assert get("/v2/logs", period="1h").status_code == 200


@pytest.mark.parametrize("path", ["/v2/logs", "/v2/usage"])
@pytest.mark.parametrize(
    "window",
    [
        {"period": "999999d"},
        {"period": "999999h"},
        {"period": "93d"},
        {"start": "0001-01-01T00:00:00+14:00", "end": "0001-01-02T00:00:00Z"},
        {"start": "9999-12-31T00:00:00Z", "end": "9999-12-31T23:59:59-14:00"},
    ],
)
def test_a_window_beyond_the_calendar_is_rejected(get, path, window):
    assert get(path, **window).status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        {"direction": "UP"},
        {"type": "GIFT"},
        {"from": "2026-11-02T00:00:00Z", "to": "2026-11-01T00:00:00Z"},
        {"from": "2026-11-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"},
        {"limit": "\u00b2"},
        *({"cursor": b64encode(each).decode()} for each in (b"v1:0", b'{"v": 1, "c": -5}', b'{"c": 1}', b"7", b"{")),
    ],
)
def test_undocumented_values_are_rejected(get, query):
    assert get("/v2/billing/transactions", **query).status_code == 400


@pytest.mark.parametrize("path", ["/v2/logs", "/v2/usage"])
def test_other_keys_need_a_management_key(get, sandbox, path):
    assert get(path, period="1h", key_prefix=sandbox.api_key[:8]).status_code == 200
    assert get(path, period="1h", key_prefix="00000000").status_code == 403
