"""
Find in the manifest what the journal could not take in.

An answer that cannot be written down, because Airflow's database is away for long, has its pictures stored all the
same, and the manifest names them. Without a look there the next try would find a request that was billed and no answer
to it, and tell of a loss that is none.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.journal.records import Paid, PaidPicture, Stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_imagen.generation.plan import Plan
    from airflow_provider_imagen.journal.records import Entry, Fact
    from airflow_provider_imagen.journal.url_encryption import LinkSeal

Line = dict[str, Any]

_NEEDED = {
    "image_index",
    "url",
    "enhanced_prompt",
    "seed",
    "usd",
    "inference_id",
    "model",
    "created_at",
    *Stored.__struct_fields__,
}
"""What a line must have to tell of a picture; somebody may have edited the file."""


def facts_missed(plan: Plan, *, entries: Mapping[str, Entry], lines: Iterable[Line], links: LinkSeal) -> list[Fact]:
    """
    Make the facts that the journal lacks of requests whose pictures the manifest names, all of them.

    A request of which only some pictures are named is left in doubt: what became of the others, nobody knows.

    :param entries: the journal; requests in doubt are those with an intent and no answer
    :param lines: what this very task instance recorded in the manifest
    :param links: seals links for the journal
    """
    by_request: dict[Any, list[Line]] = defaultdict(list)
    for line in lines:
        if line.keys() >= _NEEDED:
            by_request[line.get("client_request_id")].append(line)
    missed: list[Fact] = []
    for unit in plan.units:
        entry = entries.get(unit.key)
        if entry is None or entry.paid is not None:
            continue
        for client_request_id in entry.open_intents:
            found = sorted(by_request.get(client_request_id, ()), key=lambda line: line["image_index"])
            if found and len(found) == unit.request.expected_images:
                missed.append(_answer(client_request_id, found, links).to_fact(unit.key))
                missed += [_stored(line).to_fact(unit.key, number) for number, line in enumerate(found)]
                break
    return missed


def _answer(client_request_id: str, lines: list[Line], links: LinkSeal) -> Paid:
    costs = [Decimal(str(line["usd"])) for line in lines if line["usd"] is not None]
    return Paid(
        client_request_id=client_request_id,
        pictures=tuple(
            PaidPicture(
                url=links.close(line["url"]) if line["url"] else None,
                prompt=line["enhanced_prompt"],
                seed=line["seed"],
            )
            for line in lines
        ),
        usd=sum(costs, Decimal(0)) if len(costs) == len(lines) else None,
        usd_is_estimate=True,  # the manifest does not say where the amounts are from
        inference_id=lines[0]["inference_id"],
        model=lines[0]["model"],
        at=datetime.fromisoformat(lines[0]["created_at"]).timestamp(),
    )


def _stored(line: Line) -> Stored:
    return Stored(**{name: line[name] for name in Stored.__struct_fields__})
