"""Charges matched with real folders: each cent gets exactly one category."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from upath import UPath

from airflow_provider_imagen.accounting.reconciliation import Entry, Reconciliation, reconcile
from airflow_provider_imagen.accounting.recorded_requests import RecordedImage, RecordedRequest, RecordedRequests
from airflow_provider_imagen.accounting.statement import LedgerCheck, Statement
from airflow_provider_imagen.api.account_rows import LoggedRequest
from airflow_provider_imagen.api.client_request_id import new_client_request_id
from airflow_provider_imagen.bill import Tally
from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.image_record import ImageRecord, StoredFile
from airflow_provider_imagen.run_report import FailureLine
from airflow_provider_imagen.storage.manifest import manifest_line, write_manifest, write_progress
from airflow_provider_imagen.storage.output_folders import find_output_folders
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from airflow_provider_imagen.image_record import ManifestLine

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
TI_KEY = TaskInstanceKey(dag_id="postcards", task_id="paint", run_id="monday")


def an_id(task_id: str = "paint", request: str = "0123456789abcdef0123") -> str:
    return new_client_request_id(dag_id="postcards", task_id=task_id, request=request)


def charge(
    name: str | None, usd: str = "0.04", *, at: datetime = NOW, inference_id: str | None = None
) -> LoggedRequest:
    return LoggedRequest(
        at=at,
        usd=Decimal(usd),
        key="key",
        model="flux/dev",
        inference_id=inference_id or f"inference of {name}",
        client_request_id=name,
    )


def statement_of(
    charges: Sequence[LoggedRequest], *, since: datetime = NOW - timedelta(days=1), until: datetime | None = None
) -> Statement:
    ledger = LedgerCheck(
        usd=Decimal(0),
        only_in_log=Tally(),
        only_in_ledger=Tally(),
        different=Tally(),
        refunds=Tally(),
        other_charges=Tally(),
        unreadable=0,
    )
    return Statement(
        since=since,
        until=until or NOW + timedelta(days=1),
        keys=("key",),
        requests=tuple(charges),
        unreadable=0,
        ledger=ledger,
    )


def image(
    folder: Path, name: str, client_request_id: str | None, *, usd: float | None = 0.04, position: int = 0, **known: Any
) -> ManifestLine:
    """Write a file and return its line."""
    folder.mkdir(parents=True, exist_ok=True)
    data = f"{name} of {client_request_id}".encode()
    (folder / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    file = StoredFile(str(folder / name), name, digest, len(data), "image/png", 8, 8)
    ti_key = known.pop("ti_key", TI_KEY)
    created_at = known.pop("created_at", NOW)
    record = ImageRecord.of(
        file, prompt_index=0, image_index=position, usd=usd, client_request_id=client_request_id, **known
    )
    return manifest_line(record, file, ti_key=ti_key, created_at=created_at, response_index=position)


def match(charges: Sequence[LoggedRequest], *folders: Any, verify: bool = False, **window: Any) -> Reconciliation:
    statement = statement_of(charges, **window)
    result = reconcile(statement, RecordedRequests(folders, verify=verify))
    assert sum((total.usd for total in result.tallies.values()), Decimal(0)) == statement.total.usd
    return result


def categories(result: Reconciliation) -> list[str]:
    return [entry.category for entry in result.entries]


def test_charges_with_images_are_complete(tmp_path: Path) -> None:
    first, second = an_id(), an_id()
    lines = [image(tmp_path, "a.png", first), image(tmp_path, "b.png", second)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    result = match([charge(first), charge(second)], tmp_path)

    assert categories(result) == ["stored", "stored"]
    assert result.is_complete
    assert result.entries[0].path == str(tmp_path / "a.png")


@pytest.mark.parametrize("outcome", ["failed", "in_doubt", "filtered"])
def test_a_charge_without_an_image_is_ready_for_a_claim(tmp_path: Path, outcome: Any) -> None:
    name = an_id()
    failure = FailureLine(client_request_id=name, error="ChargedButLostError", outcome=outcome, prompt_index=0)
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[], failures=[failure])
    (entry,) = match([charge(name)], tmp_path).entries

    assert (entry.category, entry.usd, entry.inference_id) == ("lost", Decimal("0.04"), f"inference of {name}")
    assert entry.reason == "ChargedButLostError"
    assert (entry.dag_id, entry.task_id) == ("postcards", "paint")


@pytest.mark.parametrize("verify", [False, True])
def test_missing_and_changed_files_are_gone(tmp_path: Path, verify: bool) -> None:
    names = [an_id(), an_id(), an_id(), an_id()]
    lines = [image(tmp_path, f"{number}.png", name) for number, name in enumerate(names)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"edited")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes().upper())  # as many bytes
    result = match([charge(name) for name in names], tmp_path, verify=verify)

    assert categories(result) == ["gone", "gone", "gone" if verify else "stored", "stored"]
    assert [entry.reason for entry in result.entries[:2]] == ["file missing", "file changed"]
    assert not result.is_complete


def test_a_file_that_another_run_has_replaced_is_gone(tmp_path: Path) -> None:
    tuesday = replace(TI_KEY, run_id="tuesday")
    first, second = an_id(), an_id()
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[image(tmp_path, "a.png", first)])
    line = image(tmp_path, "a.png", second, ti_key=tuesday, created_at=NOW + timedelta(hours=1))
    assert line.bytes == (tmp_path / "a.png").stat().st_size
    write_manifest(tmp_path, ti_key=tuesday, lines=[line])
    result = match([charge(first), charge(second)], tmp_path)

    assert categories(result) == ["gone", "stored"]


def test_one_charge_is_split_between_its_images(tmp_path: Path) -> None:
    """Of four images for 0.10, one was withheld and one is gone."""
    name = an_id()
    lines = [image(tmp_path, f"{number}.png", name, usd=0.025, position=number) for number in range(3)]
    failure = FailureLine(client_request_id=name, error="FilteredError", outcome="filtered", prompt_index=0)
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines, failures=[failure])
    (tmp_path / "1.png").unlink()
    result = match([charge(name, "0.1")], tmp_path)

    found = [(entry.category, entry.usd, entry.images, entry.reason) for entry in result.entries]
    assert found == [
        ("stored", Decimal("0.05"), 2, None),
        ("gone", Decimal("0.025"), 1, "file missing"),
        ("lost", Decimal("0.025"), 0, "FilteredError"),
    ]


def test_rounded_shares_of_a_charge_are_not_lost(tmp_path: Path) -> None:
    name = an_id()
    lines = [image(tmp_path, f"{number}.png", name, usd=float(0.1 / 3), position=number) for number in range(3)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)

    assert [(entry.category, entry.usd) for entry in match([charge(name, "0.1")], tmp_path).entries] == [
        ("stored", Decimal("0.1"))
    ]


@pytest.mark.parametrize("usd", [None, 0.05])
def test_the_api_says_what_an_image_cost(tmp_path: Path, usd: float | None) -> None:
    name = an_id()
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[image(tmp_path, "a.png", name, usd=usd)])
    (entry,) = match([charge(name, "0.04")], tmp_path).entries

    assert (entry.category, entry.usd) == ("stored", Decimal("0.04"))
    assert entry.usd_recorded == (None if usd is None else Decimal("0.05"))


def test_a_request_that_was_charged_twice_is_no_bargain(tmp_path: Path) -> None:
    first, second = an_id(), an_id()
    lines = [image(tmp_path, "a.png", first, inference_id="inf-2"), image(tmp_path, "b.png", second)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    charges = [
        charge(first, inference_id="inf-1"),
        charge(first, inference_id="inf-2"),
        charge(second, inference_id="inf-3"),
        charge(second, inference_id="inf-4"),
    ]
    result = match(charges, tmp_path)

    assert categories(result) == ["lost", "stored", "stored", "lost"]
    assert {entry.reason for entry in result.missing} == {"another charge for the same request"}


def test_images_without_a_charge_cost_nothing_and_are_missing_from_the_log(tmp_path: Path) -> None:
    paid, unpaid, free = an_id(), an_id(), an_id()
    lines = [
        image(tmp_path, "a.png", paid),
        image(tmp_path, "b.png", unpaid, model="flux/dev", inference_id="inf"),
        image(tmp_path, "c.png", free, usd=0.0),
    ]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    result = match([charge(paid), charge(unpaid, "0", inference_id="inf")], tmp_path)

    (entry,) = result.missing
    assert (entry.category, entry.usd, entry.usd_recorded) == ("not charged", Decimal(0), Decimal("0.04"))
    assert (entry.client_request_id, entry.inference_id, entry.dag_id) == (unpaid, "inf", "postcards")


def test_images_and_charges_of_other_times_do_not_count(tmp_path: Path) -> None:
    old, edge = an_id(), an_id()
    start = NOW - timedelta(days=1)
    lines = [
        image(tmp_path, "old.png", old, created_at=start - timedelta(seconds=1)),
        image(tmp_path, "edge.png", edge, created_at=start + timedelta(seconds=1)),
    ]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    before = charge(edge, at=start - timedelta(seconds=1))  # sent before the window, received in it

    assert match([before], tmp_path).entries == ()


def test_a_reused_image_is_charged_once(tmp_path: Path) -> None:
    """The run that paid for it has its folder elsewhere, or has deleted it: the copy shows that the image exists."""
    tuesday = replace(TI_KEY, run_id="tuesday")
    name = an_id()
    bought = image(tmp_path / "monday", "a.png", name)
    write_manifest(tmp_path / "monday", ti_key=TI_KEY, lines=[bought])
    copy = image(tmp_path / "tuesday", "a.png", name, usd=0.0, ti_key=tuesday, reused_from=bought.path, usd_saved=0.04)
    write_manifest(tmp_path / "tuesday", ti_key=tuesday, lines=[copy])
    both = tmp_path / "monday", tmp_path / "tuesday"

    assert categories(match([charge(name)], *both)) == ["stored"]
    (tmp_path / "monday" / "a.png").unlink()
    assert categories(match([charge(name)], *both)) == ["stored"]
    (tmp_path / "tuesday" / "a.png").unlink()
    assert categories(match([charge(name)], *both)) == ["gone"]
    only_copy = match([], tmp_path / "tuesday")
    assert only_copy.entries == (), "the copy was never charged"


def test_images_of_a_running_task_are_stored(tmp_path: Path) -> None:
    name = an_id()
    write_progress(tmp_path, ti_key=TI_KEY, lines=[image(tmp_path, "a.png", name)])

    assert categories(match([charge(name)], tmp_path)) == ["stored"]


def test_charges_without_a_record_are_kept_apart_by_who_made_them(tmp_path: Path) -> None:
    known = an_id()
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[image(tmp_path, "a.png", known)])
    names = [
        known,
        an_id(),
        an_id("sketch"),
        an_id(request="hook"),
        "imagen.0123456789abcdef0123.0123456789abcdef",
        "imagen.hook.0123456789abcdef",
        "bot-1",
        None,
    ]
    result = match([charge(name, inference_id=f"inf-{number}") for number, name in enumerate(names)], tmp_path)

    assert categories(result) == [
        "stored",
        "unrecorded",
        "elsewhere",
        "hook",
        "elsewhere",
        "hook",
        "other client",
        "other client",
    ]
    assert [entry.category for entry in result.missing] == ["unrecorded"]


def test_images_with_ids_of_earlier_versions_are_matched(tmp_path: Path) -> None:
    name = "imagen.0123456789abcdef0123.0123456789abcdef"
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[image(tmp_path, "a.png", name)])
    (entry,) = match([charge(name)], tmp_path).entries

    assert (entry.category, entry.dag_id, entry.task_id) == ("stored", "postcards", "paint")


def test_a_charge_without_a_client_request_id_is_matched_by_its_inference_id(tmp_path: Path) -> None:
    lines = [image(tmp_path, "a.png", an_id(), inference_id="inf-1")]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)

    assert categories(match([charge(None, inference_id="inf-1")], tmp_path)) == ["stored"]


def test_lines_from_outside_lead_to_no_other_file(tmp_path: Path) -> None:
    folder, secret, name = tmp_path / "out", tmp_path / "secret.png", an_id()
    line = image(folder, "a.png", name)
    secret.write_bytes((folder / "a.png").read_bytes())
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(secret)
    planted = replace(line, file_name="../secret.png")
    write_manifest(folder, ti_key=TI_KEY, lines=[])
    (folder / "metadata.jsonl").write_text(
        "".join(f"{text}\n" for text in ("[]", "{", '{"file_name": 7}', "x" * 300_000))
        + "".join(f"{json.dumps(each.to_json())}\n" for each in (planted, line))
    )

    assert categories(match([charge(name)], folder)) == ["gone"]


def test_output_folders_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("monday", "deep/er/tuesday"):
        write_manifest(tmp_path / name, ti_key=TI_KEY, lines=[image(tmp_path / name, "a.png", an_id())])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "monday")

    assert find_output_folders(tmp_path) == [tmp_path / "deep/er/tuesday", tmp_path / "monday"]
    assert find_output_folders(tmp_path / "monday") == [tmp_path / "monday"]
    for name in ("empty", "absent"):
        with pytest.raises(StorageError, match=f"{name} is not an output folder"):
            find_output_folders(tmp_path / name)


def test_object_stores_are_searched_like_disks(tmp_path: Path) -> None:
    store: Any = UPath(f"memory://{tmp_path.name}/media")
    names = [an_id(), an_id(), an_id()]
    for number, name in enumerate(names):
        line = image(tmp_path, f"{number}.png", name)
        folder = store / f"run{number}"
        (folder / line.file_name).write_bytes((tmp_path / line.file_name).read_bytes())
        failure = FailureLine(client_request_id=f"{name[:-1]}z", error="ChargedButLostError")
        write_manifest(folder, ti_key=replace(TI_KEY, run_id=str(number)), lines=[line], failures=[failure])
    (store / "run1" / "1.png").unlink()
    (store / "run2" / "2.png").write_bytes(b"edited")
    folders = find_output_folders(store)

    assert [folder.name for folder in folders] == ["run0", "run1", "run2"]
    result = match([*map(charge, names), charge(f"{names[0][:-1]}z")], *folders)
    assert categories(result) == ["stored", "gone", "gone", "lost"]
    assert str(result.entries[0].path).endswith("media/run0/0.png")


class OneRequest(RecordedRequests):
    """Records in which every charge finds the same request."""

    def __init__(self, request: RecordedRequest) -> None:
        super().__init__([])
        self._request = request

    def find(self, record: Any) -> RecordedRequest:
        return self._request


images = st.builds(
    RecordedImage,
    st.sampled_from(["intact", "changed", "missing"]),
    st.just("a.png"),
    st.none() | st.decimals(0, 1, places=7),
)


@given(st.decimals("0.0000001", 5, places=9), st.lists(images, max_size=5))
def test_the_parts_of_a_charge_add_up(usd: Decimal, found: list[RecordedImage]) -> None:
    request = RecordedRequest(client_request_id="x", inference_id=None, images=dict(enumerate(found)))
    entries = reconcile(statement_of([charge("x", str(usd))]), OneRequest(request)).entries

    assert sum(entry.usd for entry in entries) == usd
    assert all(entry.usd >= 0 for entry in entries)
    assert sum(entry.images for entry in entries) == len(found)


def test_a_reconciliation_becomes_json() -> None:
    entry = Entry(category="lost", usd=Decimal("0.04"), at=NOW, inference_id="inf-1", reason="FilteredError")
    document = Reconciliation(statement=statement_of([]), entries=(entry,)).to_json()

    assert document["is_complete"] is False
    assert document["categories"]["lost"] == {"count": 1, "usd": 0.04}
    assert document["missing"][0]["at"] == "2026-11-20T12:00:00+00:00"


@pytest.mark.parametrize("names", [("id", "id"), ("id", None), (None, "id")])
def test_several_rows_of_one_inference_are_one_charge(tmp_path: Path, names: tuple[str | None, str | None]) -> None:
    """Such as a row for each image."""
    name = an_id()
    lines = [image(tmp_path, f"{number}.png", name, position=number, inference_id="inf") for number in range(2)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    result = match([charge(each and name, inference_id="inf") for each in names], tmp_path)

    assert [(entry.category, entry.usd, entry.images) for entry in result.entries] == [("stored", Decimal("0.08"), 2)]
    assert result.is_complete


def test_charges_without_an_inference_id_are_not_summed(tmp_path: Path) -> None:
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[])
    bare = replace(charge(None), inference_id=None)

    assert categories(match([bare, bare], tmp_path)) == ["other client", "other client"]


@pytest.mark.parametrize(
    "unknown",
    [
        {"client_request_id": None, "inference_id": None},
        {"created_at": None},
        {"created_at": "yesterday"},
        {"created_at": "2026-11-20T12:00:00"},
    ],
)
def test_uncharged_images_that_no_charge_can_be_looked_up_for_are_counted(tmp_path: Path, unknown: Any) -> None:
    lines = [image(tmp_path, "a.png", an_id()), image(tmp_path, "b.png", an_id(), usd=0.0)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[])
    text = "".join(f"{json.dumps({**line.to_json(), **unknown})}\n" for line in lines)
    (tmp_path / "metadata.jsonl").write_text(text)
    result = match([], tmp_path)

    assert (result.entries, result.unmatched_images, result.is_complete) == ((), 1, False), "the second was free"
    assert result.to_json()["unmatched_images"] == 1


def test_a_charge_settles_an_image_without_a_date(tmp_path: Path) -> None:
    name = an_id()
    line = image(tmp_path, "a.png", name)
    write_manifest(tmp_path, ti_key=TI_KEY, lines=[])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**line.to_json(), "created_at": None}))
    result = match([charge(name)], tmp_path)

    assert (categories(result), result.unmatched_images) == (["stored"], 0)


def test_what_the_folders_state_above_the_charge_is_shown(tmp_path: Path) -> None:
    names = [an_id(), an_id(), an_id()]
    costs = [0.08, 0.04, 0.0400000004]
    lines = [image(tmp_path, f"{each}.png", name, usd=each) for name, each in zip(names, costs, strict=True)]
    write_manifest(tmp_path, ti_key=TI_KEY, lines=lines)
    result = match([charge(name) for name in names], tmp_path)

    assert result.overstated == Tally(1, Decimal("0.04"))
    assert result.to_json()["overstated"] == {"count": 1, "usd": 0.04}


def test_json_lists_a_bounded_number_of_entries() -> None:
    entry = Entry(category="lost", usd=Decimal("0.04"), at=NOW, inference_id="inf-1", reason="FilteredError")
    result = Reconciliation(statement=statement_of([]), entries=(entry,) * 10_000)
    document = result.to_json()

    assert (len(document["missing"]), document["missing_not_listed"]) == (100, 9_900)
    assert len(result.missing) == 10_000
    assert document["categories"]["lost"]["count"] == 10_000


def test_folders_too_deep_to_be_searched_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "1/2/3/4/5/6/7/8"
    write_manifest(folder, ti_key=TI_KEY, lines=[image(folder, "a.png", an_id())])
    assert find_output_folders(tmp_path) == [folder]
    write_manifest(folder / "9", ti_key=TI_KEY, lines=[])
    with pytest.raises(StorageError, match="has folders more than 8 levels down; pass some of them"):
        find_output_folders(tmp_path)
