"""What a run itself costs: memory per picture, and time beside the waiting for the API."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest

from airflow_provider_imagen.generation.facts import Stored
from airflow_provider_imagen.generation.journal import Journal

pytestmark = pytest.mark.timeout(60)


def grown_by(work) -> tuple[object, int]:
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        gc.collect()
        return kept, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_picture_leaves_less_than_3_kb_in_memory_and_its_journal_entry_too(world):
    plan = world.plan([f"a boat number {number}" for number in range(2000)])
    world.tools.save = _save_nothing
    assert len(world.run(plan, concurrency=8).made) == 2000
    journal = Journal(world.store)
    _, bytes_of_entries = grown_by(journal.open)
    journal.close()
    assert len(journal.entries) == 2000
    assert bytes_of_entries / 2000 < 3 * 1024

    def only_the_result():
        result = world.run(plan, concurrency=8, on_picture=lambda *_: None)
        world.journal = None
        return result

    result, bytes_of_result = grown_by(only_the_result)
    assert len(result.made) == 2000
    assert bytes_of_result / 2000 < 3 * 1024


def test_the_time_of_a_try_grows_no_faster_than_its_pictures(new_world):
    def seconds(count: int) -> float:
        fresh = new_world()
        fresh.tools.save = _save_nothing
        plan = fresh.plan([f"p{number}" for number in range(count)])
        began = time.perf_counter()
        fresh.run(plan, concurrency=8)
        return time.perf_counter() - began

    seconds(100)
    small, large = min(seconds(250) for _ in range(2)), seconds(2000)
    assert large < 8 * 3 * small


def test_a_slow_journal_store_costs_little_of_the_wall_time_at_high_concurrency(world):
    world.store.delay_seconds = 0.019
    world.tools.latency_seconds = 0.2
    plan = world.plan([f"p{number}" for number in range(64 * 6)])
    began = time.perf_counter()
    result = world.run(plan, concurrency=64)
    seconds = time.perf_counter() - began
    assert len(result.made) == 384
    assert seconds < 6  # with a write per fact it would be 14
    assert world.journal.writes < 384 / 2


def _save_nothing(data, *, item, image_index, paid, picture, announce):
    name = f"{item.index}-{image_index}.png"
    return Stored(
        path=f"/out/{name}", file_name=name, sha256="0" * 64, bytes=1, mime_type="image/png", width=1, height=1
    )
