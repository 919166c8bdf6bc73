"""The overhead of a run: memory per image and journal writes. Speed is measured by the benchmarks."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from airflow_provider_imagen.image_record import StoredFile
from airflow_provider_imagen.journal.log import Journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def grown_by(work) -> tuple[object, int]:
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        gc.collect()
        return kept, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_an_image_takes_less_than_3_kb_of_memory_and_so_does_its_journal_entry(world):
    plan = world.plan([f"a boat number {number}" for number in range(2000)])
    world.ports.save = _save_nothing
    assert len(world.run(plan, concurrency=8).made) == 2000
    journal = Journal(world.store)
    _, bytes_of_entries = grown_by(journal.open)
    journal.close()
    assert len(journal.state.requests) == 2000
    assert bytes_of_entries / 2000 < 3 * 1024

    def only_the_result():
        result = world.run(plan, concurrency=8, on_image=lambda *_: None)
        world.journal = None
        return result

    result, bytes_of_result = grown_by(only_the_result)
    assert len(result.made) == 2000
    assert bytes_of_result / 2000 < 3 * 1024


def test_concurrent_requests_share_the_writes_of_a_slow_journal(world):
    world.store.delay_seconds = 0.019
    world.ports.latency_seconds = 0.2
    result = world.run(world.plan([f"p{number}" for number in range(64 * 6)]), concurrency=64)
    assert len(result.made) == 384
    assert world.journal.writes < 384 / 2  # three records each, so 1,152 if each had its own write


def _save_nothing(data, received, position, before_write):
    name = f"{received.item.index}-{position}.png"
    return StoredFile(
        path=f"/out/{name}", file_name=name, sha256="0" * 64, bytes=1, mime_type="image/png", width=1, height=1
    )
