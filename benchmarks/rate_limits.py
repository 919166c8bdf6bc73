"""
How much throughput a task loses by having to discover the API's rate limit.

The provider's own run sends over HTTP to a rate-limited sandbox in a separate process: once with ``concurrency`` and
``requests_per_minute`` set to exactly that limit, once with neither. Nothing is drawn, downloaded or stored, so the
limit is the bottleneck.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.download.downloader import Downloader
from airflow_provider_imagen.journal.log import Journal
from airflow_provider_imagen.journal.stores import FolderJournalStore
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.api_adapter import ApiAdapter
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.ports import RunOptions
from airflow_provider_imagen.run.runner import Run
from airflow_provider_imagen.run.shared_state import Cancellation
from airflow_provider_imagen.sandbox import SANDBOX_API_KEY, SandboxControl
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "Finding the rate that a limited API accepts"
REMARK = "lost: fewer images per second than with the limit known beforehand, learning included."

PER_SECOND = 20
RATE = {"requests_per_minute": 60 * PER_SECOND}
LIMITS: dict[str, dict[str, Any]] = {
    "token bucket, burst 1": {**RATE, "counting": "bucket"},
    "token bucket, burst 10": {**RATE, "counting": "bucket", "burst": 10},
    "fixed window of 1 s": {**RATE, "counting": "fixed", "window_seconds": 1},
    "fixed window of 10 s": {**RATE, "counting": "fixed", "window_seconds": 10},
    "sliding window of 6 s": {**RATE, "window_seconds": 6},
    "8 at once": {"max_concurrent": 8},
}


def measure(_: Lab | None = None, *, quick: bool) -> list[Row]:
    """Return a row per limit; needs no running Airflow."""
    cases = [(limit, 0.4, False) for limit in LIMITS] + [
        ("token bucket, burst 10", 2.0, False),
        ("token bucket, burst 10", 0.4, True),
    ]
    images, known_images = (100, 40) if quick else (3000, 600)
    rows = []
    with _sandbox() as sandbox:
        for limit, latency, retry_after in cases[1:2] if quick else cases:
            limits = LIMITS[limit]
            sandbox.reset()
            sandbox.configure(latency_seconds=latency, tells_retry_after=retry_after, **limits)
            options = {"concurrency": limits.get("max_concurrent", 64)}
            if "requests_per_minute" in limits:
                options["requests_per_minute"] = limits["requests_per_minute"]
            known, known_refused = _run(sandbox, known_images, latency=latency, **options)
            sandbox.reset()
            sandbox.configure(latency_seconds=latency, tells_retry_after=retry_after, **limits)
            found, refused = _run(sandbox, images, latency=latency, concurrency=64)
            rows.append(
                {
                    "limit": limit,
                    "latency s": latency,
                    "Retry-After": "sent" if retry_after else "not sent",
                    "images": images,
                    "known images/s": round(known, 2),
                    "found images/s": round(found, 2),
                    "lost %": round(100 * (1 - found / known), 1),
                    "refused %": round(100 * refused, 2),
                    "refused % when known": round(100 * known_refused, 2),
                }
            )
    return rows


def _run(sandbox: SandboxControl, images: int, *, latency: float, **options: Any) -> tuple[float, float]:
    """Generate images; return how many per second and the share of requests that got a 429."""
    plan = make_plan(
        prompt=[f"picture {number}" for number in range(images)],
        arguments={"model": "imagen-3.0-generate-002"},
        can_store=False,
        price=lambda _: None,
    )
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=SANDBOX_API_KEY))
    downloader = Downloader(allow_private_hosts=True)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(FolderJournalStore(Path(folder), "rate-limits"))
        journal.open()
        try:
            result = Run(
                ti_key=TaskInstanceKey(dag_id="dag", task_id="task", run_id="run"),
                plan=plan,
                api=ApiAdapter(client=client, downloader=downloader),
                sink=None,
                journal=journal,
                options=RunOptions(**options),
                encryption=UrlEncryption(SANDBOX_API_KEY),
                cancellation=Cancellation(),
            ).execute()
        finally:
            journal.close()
            client.close()
            downloader.close()
    billed = Counter(charge.client_request_id for charge in sandbox.ledger())
    if len(result.made) != images or len(billed) != images or set(billed.values()) != {1}:
        raise RuntimeError(f"{len(result.made)} made and {billed.total()} billed of {images}: {result.abort_reason}")
    statuses = Counter(seen.status for seen in sandbox.seen("/v1/images/generations"))
    return images / (result.seconds - latency), statuses[429] / statuses.total()


@contextmanager
def _sandbox() -> Iterator[SandboxControl]:
    """Run a sandbox in its own process."""
    command = [sys.executable, "-m", "airflow_provider_imagen.cli", "sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            sandbox = SandboxControl(process.stdout.readline().split()[-1])
            sandbox.configure(balance_usd=100_000)
            yield sandbox
        finally:
            process.terminate()
