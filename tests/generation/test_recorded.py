from __future__ import annotations

import pytest

from airflow_provider_imagen.generation.recorded import facts_missed
from airflow_provider_imagen.journal import records as facts
from airflow_provider_imagen.journal.records import Entry
from airflow_provider_imagen.journal.url_encryption import LinkSeal

LINE = {
    "client_request_id": "r1",
    "image_index": 0,
    "url": None,
    "enhanced_prompt": None,
    "seed": None,
    "usd": 0.04,
    "inference_id": "inf",
    "model": "m",
    "created_at": "2026-11-27T12:00:00+00:00",
    "path": "/out/a.png",
    "file_name": "a.png",
    "sha256": "0" * 64,
    "bytes": 1,
    "mime_type": "image/png",
    "width": 1,
    "height": 1,
    "thumbnail": None,
}


def missed(world, lines) -> list[str]:
    plan = world.plan("a")
    (unit,) = plan.units
    intent = facts.intent(unit.key, client_request_id="r1", model="m", usd=None)
    entries = {unit.key: Entry(open_intents={"r1": intent})}
    return [fact["t"] for fact in facts_missed(plan, entries=entries, lines=lines, links=LinkSeal("key"))]


def test_an_answer_whose_picture_the_manifest_names_is_known(world):
    assert missed(world, [LINE]) == ["paid", "stored"]


@pytest.mark.parametrize("key", sorted(LINE))
def test_a_line_that_somebody_took_something_out_of_tells_nothing(world, key):
    assert missed(world, [{name: value for name, value in LINE.items() if name != key}]) == []
