"""A journal as release 0.1 wrote it, with every record type: later releases must read it or reject its version."""

from __future__ import annotations

from decimal import Decimal

from memory_store import MemoryStore

from airflow_provider_imagen.image_record import ResponseImage, StoredFile
from airflow_provider_imagen.journal.log import read_journal
from airflow_provider_imagen.journal.records import ChargeLost, Intent, Response, Target, decode_record, encode_record

OWNER = "1-0123456789ab"
SAMPLE = {
    "header": '{"version":2,"owner":"1-0123456789ab","owners":["1-0123456789ab"]}',
    f"{OWNER}/1": (
        '{"t":"intent","client_request_id":"old","model":"m","at":1.5,"target":{"prompt_index":0,"image_index":0,'
        '"images":1,"prompt_images":1,"prompt":"before"},"key":"a#1"}\n'
        '{"t":"presumed_unbilled","client_request_id":"old","key":"a#1"}\n'
        '{"t":"finished"}\n'
    ),
    f"{OWNER}/0": (
        '{"full_segments":1}\n'
        '{"t":"intent","client_request_id":"r1","model":"m","at":2.5,"target":{"prompt_index":0,"image_index":0,'
        '"images":2,"prompt_images":2,"prompt":"a f\\u00f6x","name":"fox"},"usd":"0.08","clock_offset":-0.5,'
        '"account":"0123456789abcdef","key":"a#1"}\n'
        '{"t":"response","client_request_id":"r1","images":[{"url":"https://cdn.test/1.png","prompt":"a red fox",'
        '"seed":7},{}],"model":"m","at":3.5,"usd":"0.09","usd_undelivered":"0.01","inference_id":"inf-1","key":"a#1"}\n'
        '{"t":"write_started","image":1,"file":{"path":"/out/1.png","file_name":"1.png","sha256":"11","bytes":9,'
        '"mime_type":"image/png","width":8,"height":4},"key":"a#1"}\n'
        '{"t":"write_committed","image":0,"file":{"path":"/out/0.png","file_name":"0.png","sha256":"00","bytes":5,'
        '"mime_type":"image/png","width":8,"height":4,"thumbnail":".imagen/thumbnails/0.png.webp"},"key":"a#1"}\n'
        '{"t":"intent","client_request_id":"r2","model":"m","at":4.5,"target":{"prompt_index":1,"image_index":0,'
        '"images":1,"prompt_images":1,"prompt":"lost"},"key":"b#1"}\n'
        '{"t":"charge_lost","client_request_id":"r2","usd":"0.04","inference_id":"inf-2","key":"b#1"}\n'
        '{"t":"intent","client_request_id":"r3","model":"m","at":5.5,"target":{"prompt_index":2,"image_index":0,'
        '"images":1,"prompt_images":1,"prompt":"refused"},"key":"c#1"}\n'
        '{"t":"rejected","client_request_id":"r3","key":"c#1"}\n'
        '{"t":"response","client_request_id":"r4","images":[{"withheld":true},{"broken":"cut off"}],"model":"m",'
        '"at":6.5,"usd":"0.04","usd_is_estimate":true,"key":"d#1"}\n'
        '{"t":"missing","image":1,"key":"d#1"}\n'
        '{"t":"intent","client_request_id":"r5","model":"m","at":7.5,"target":{"prompt_index":4,"image_index":0,'
        '"images":1,"prompt_images":1,"prompt":"open"},"key":"e#1"}\n'
    ),
}


def test_a_journal_of_an_earlier_release_replays_to_the_same_state():
    store = MemoryStore()
    for name, text in SAMPLE.items():
        store.write(name, text)
    state = read_journal(store)

    def target(index: int, prompt: str, *, images: int = 1, name: str | None = None) -> Target:
        return Target(prompt_index=index, image_index=0, images=images, prompt_images=images, prompt=prompt, name=name)

    old = Intent(key="a#1", client_request_id="old", model="m", at=1.5, target=target(0, "before"))
    open_intent = Intent(key="e#1", client_request_id="r5", model="m", at=7.5, target=target(4, "open"))
    assert state.unresolved == {"old": old}
    assert state.all_unresolved() == {"old": old, "r5": open_intent}

    fox, lost, refused, withheld, _ = (state.requests[key] for key in ("a#1", "b#1", "c#1", "d#1", "e#1"))
    assert fox.target == target(0, "a föx", images=2, name="fox")
    assert fox.response == Response(
        key="a#1",
        client_request_id="r1",
        images=(ResponseImage("https://cdn.test/1.png", "a red fox", 7), ResponseImage()),
        model="m",
        at=3.5,
        usd=Decimal("0.09"),
        usd_undelivered=Decimal("0.01"),
        inference_id="inf-1",
    )
    assert fox.files == {
        0: StoredFile("/out/0.png", "0.png", "00", 5, "image/png", 8, 4, ".imagen/thumbnails/0.png.webp"),
        1: StoredFile("/out/1.png", "1.png", "11", 9, "image/png", 8, 4),
    }
    assert (fox.writes_started, fox.usd_spent, fox.usd_lost) == ({1}, Decimal("0.09"), Decimal("0.01"))
    charge = ChargeLost(key="b#1", client_request_id="r2", usd=Decimal("0.04"), inference_id="inf-2")
    assert (lost.charges_lost, lost.usd_lost) == ({"r2": charge}, Decimal("0.04"))
    assert (refused.response, refused.unresolved, refused.usd_spent) == (None, {}, 0)
    assert (withheld.missing, withheld.response.usd_is_estimate) == ({1}, True)
    assert [image.withheld for image in withheld.response.images] == [True, False]


def test_records_are_written_as_that_release_wrote_them():
    lines = [line for name, text in SAMPLE.items() if name != "header" for line in text.splitlines()]
    records = [line for line in lines if "full_segments" not in line]
    assert [encode_record(decode_record(line)) for line in records] == records
