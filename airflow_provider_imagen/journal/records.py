"""
The facts a journal keeps of each paid request, and what they add up to.

A request's life is a few durable facts, each a small JSON object:

``intent``
    before the POST: its ``X-Client-Request-Id``, model and expected price. One per POST, never reused.
``refused``
    the API answered that it did not do the work; nothing was billed.
``paid``
    the answer: links (never picture bytes), ids, cost.
``storing``
    one picture that came inline is about to be written: path, digest, size. It is there if the file is.
``stored``
    one picture is safe: path, digest, size.
``gone``
    a picture that was stored is not there any more, and no link leads to it.
``lost``
    the API billed the POST and the answer is gone.
``unbilled``
    the answer is gone, and the API's log knows no charge.
"""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import asdict

from airflow_provider_imagen.api.money import read_amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Fact = dict[str, Any]
"""A JSON object with ``k`` (key of the request), ``t`` (type of the fact) and what that type holds."""


def intent(key: str, *, client_request_id: str, model: str, usd: Decimal | None) -> Fact:
    """Note that a POST is about to be sent."""
    return {
        "k": key,
        "t": "intent",
        "id": client_request_id,
        "model": model,
        "at": round(time.time(), 3),  # wall-clock: it is compared with the API's log after a restart
        **({"usd": str(usd)} if usd is not None else {}),
    }


def refused(key: str, *, client_request_id: str) -> Fact:
    """Note that the API answered an error, which bills nothing."""
    return {"k": key, "t": "refused", "id": client_request_id}


def gone(key: str, picture: int) -> Fact:
    """Note that a stored picture is not there any more and cannot be had again."""
    return {"k": key, "t": "gone", "n": picture}


def lost(key: str, *, client_request_id: str, inference_id: str | None, usd: Decimal | None) -> Fact:
    """Note that a POST was billed and its answer is gone."""
    return {
        "k": key,
        "t": "lost",
        "id": client_request_id,
        "inf": inference_id,
        "usd": str(usd) if usd is not None else None,
    }


def unbilled(key: str, *, client_request_id: str) -> Fact:
    """Note that the answer of a POST is gone and the API's log shows no charge for it."""
    return {"k": key, "t": "unbilled", "id": client_request_id}


class PaidPicture(Struct, frozen=True):
    """
    One answered picture without its bytes.

    :param url: link, sealed when it is signed; ``None`` when the picture came inline
    :param prompt: the prompt as the model rewrote it
    :param seed: the seed it was made with: the one the answer says, else the one that was sent
    :param withheld: filtered by the model
    :param broken: why it cannot be read
    """

    url: str | None = None
    prompt: str | None = None
    seed: int | None = None
    withheld: bool = False
    broken: str | None = None

    @property
    def is_inline(self) -> bool:
        """Whether its bytes came with the answer, and nowhere else can they be had."""
        return self.url is None and not self.withheld and self.broken is None

    def to_json(self) -> dict[str, Any]:
        """Leave out what is not set."""
        return {
            name: value
            for name, value in (
                ("url", self.url),
                ("prompt", self.prompt),
                ("seed", self.seed),
                ("withheld", self.withheld),
                ("broken", self.broken),
            )
            if value not in (None, False)
        }


class Paid(Struct, frozen=True):
    """
    What a paid request brought.

    :param usd: charged, in USD; an estimate when ``usd_is_estimate``; ``None`` when nothing is known
    :param at: when the answer came, in seconds since the epoch
    """

    client_request_id: str
    pictures: tuple[PaidPicture, ...]
    usd: Decimal | None
    usd_is_estimate: bool
    inference_id: str | None
    model: str
    at: float

    def to_fact(self, key: str) -> Fact:
        """Make the fact to write down."""
        return {
            "k": key,
            "t": "paid",
            "id": self.client_request_id,
            "pics": [picture.to_json() for picture in self.pictures],
            "usd": str(self.usd) if self.usd is not None else None,
            **({"est": True} if self.usd_is_estimate else {}),
            "inf": self.inference_id,
            "model": self.model,
            "at": self.at,
        }

    @classmethod
    def from_fact(cls, fact: Mapping[str, Any]) -> Paid:
        """Read the fact back."""
        return cls(
            client_request_id=fact["id"],
            pictures=tuple(PaidPicture(**picture) for picture in fact["pics"]),
            usd=read_amount(fact.get("usd")),
            usd_is_estimate=bool(fact.get("est")),
            inference_id=fact.get("inf"),
            model=fact["model"],
            at=fact["at"],
        )


class Stored(Struct, frozen=True):
    """
    One picture that is safe.

    :param path: where it is, as a string :class:`~airflow.sdk.ObjectStoragePath` takes
    :param file_name: its name in the output folder
    :param sha256: hexadecimal digest of the file
    :param bytes: size of the file
    """

    path: str
    file_name: str
    sha256: str
    bytes: int
    mime_type: str
    width: int
    height: int
    thumbnail: str | None = None

    def to_fact(self, key: str, picture: int) -> Fact:
        """Make the fact to write down once it is safe."""
        return {"k": key, "t": "stored", "n": picture, **{k: v for k, v in asdict(self).items() if v is not None}}

    def to_announcement(self, key: str, picture: int) -> Fact:
        """Make the fact to write down before the file is written."""
        return {**self.to_fact(key, picture), "t": "storing"}

    @classmethod
    def from_fact(cls, fact: Mapping[str, Any]) -> Stored:
        """Read the fact back."""
        return cls(**{name: fact[name] for name in cls.__struct_fields__ if name in fact})


class Entry(Struct):
    """
    Everything the journal knows of one request.

    :param open_intents: POSTs whose outcome is not known, by client request id, in the order sent
    :param stored: pictures by their place in the answer, those in ``announced`` among them
    :param announced: places of pictures that were about to be written: only their file says whether they are safe
    :param lost: charges for which no picture will come
    :param unbilled: POSTs taken for never billed because the API's log did not know them
    :param usd_replaced: charged for answers that were bought again because their pictures were gone, in USD
    """

    open_intents: dict[str, Fact] = field(default_factory=dict)
    paid: Paid | None = None
    stored: dict[int, Stored] = field(default_factory=dict)
    announced: set[int] = field(default_factory=set)
    lost: dict[str, Fact] = field(default_factory=dict)
    unbilled: dict[str, Fact] = field(default_factory=dict)
    usd_replaced: Decimal = Decimal(0)

    def apply(self, fact: Fact) -> None:
        """Take in the next fact."""
        kind, client_request_id = fact["t"], fact.get("id")
        if kind == "intent":
            self.open_intents[fact["id"]] = fact
        elif kind == "storing":
            self.stored[fact["n"]] = Stored.from_fact(fact)
            self.announced.add(fact["n"])
        elif kind == "stored":
            self.stored[fact["n"]] = Stored.from_fact(fact)
            self.announced.discard(fact["n"])
        elif kind == "gone":
            self.stored.pop(fact["n"], None)
            self.announced.discard(fact["n"])
        elif isinstance(client_request_id, str):
            intended = self.open_intents.pop(client_request_id, None)
            if kind == "paid":
                if self.paid is not None:
                    self.usd_replaced += self.paid.usd or Decimal(0)
                self.paid, self.stored, self.announced = Paid.from_fact(fact), {}, set()
            elif kind == "lost":
                self.unbilled.pop(client_request_id, None)
                self.lost[client_request_id] = fact
            elif kind == "unbilled":
                self.unbilled[client_request_id] = intended or fact

    @property
    def usd_lost(self) -> Decimal:
        """Charged without a picture, in USD."""
        return sum((read_amount(fact.get("usd")) or Decimal(0) for fact in self.lost.values()), self.usd_replaced)

    @property
    def has_unreachable_pictures(self) -> bool:
        """Whether a picture came inline and was not even announced, so that no try can bring it back."""
        return self.paid is not None and any(
            picture.is_inline and number not in self.stored for number, picture in enumerate(self.paid.pictures)
        )

    @property
    def usd_spent(self) -> Decimal:
        """Charged in all, lost charges included, in USD."""
        return self.usd_lost + ((self.paid.usd or Decimal(0)) if self.paid else Decimal(0))


def entries_of(facts: Iterable[Fact]) -> dict[str, Entry]:
    """Add facts up, in the order they were written, by the key of their request."""
    entries: dict[str, Entry] = {}
    for fact in facts:
        entries.setdefault(fact["k"], Entry()).apply(fact)
    return entries
