"""
Faults to inject: what goes wrong, and for which requests.

::

    kind                 where            effect
    ───────────────────  ───────────────  ───────────────────────────────────────────────────────────────────
    status               any              returns an error: status, envelope, message, error_kind, retry_after …
    upstream_4xx         generate         returns a 500 that wraps a rejection by the model's own service
    slow                 any              waits ``seconds``, before anything is billed
    slow_after_billing   generate         bills, then waits ``seconds``
    hang                 any              holds the connection without a response; billed or not
    reset                any              resets the TCP connection; billed or not
    cut_body             generate         bills, declares the full body, sends half of it
    html                 any              returns a gateway's HTML page; billed or not
    fewer                generate         generates at most ``count`` images
    square               generate         generates square images, whatever size was requested
    none                 generate         returns ``data: null`` or ``data: []``
    error_in_200         generate         returns 200 with an ``error`` inside
    wrong_json           generate         returns 200 with JSON in an unknown format
    shape                generate         returns another response shape than the model's own
    damaged_text         generate         damages the ``revised_prompt`` of each image
    usage                generate         reports the cost elsewhere, nowhere, or with a billed ``status``
    bad_base64           generate         returns base64 that cannot be decoded
    nsfw                 generate         flags every image in ``has_nsfw_concepts``
    content_violation    generate         flags every image with ``content_violation``
    signed_links         generate         returns signed URLs that expire after ``seconds``
    withdrawn            generate         returns 404 and lists the model in /v1/models/deprecations
    cut_image            download         declares the full image, sends half of it
    drip                 download         sends ``chunk_bytes`` every ``seconds``
    wrong_content_type   download         declares a content type that does not match the bytes
    not_an_image         download         sends JSON with the image's content type
    oversized            download         sends an endless body, or declares ``content_length``
    bomb                 download         sends a small PNG that decodes to ``pixels`` x ``pixels``
    redirect             download         redirects ``hops`` times, or to ``location``
    expired              download         responds like S3 to an expired URL: 403 or 404

"any" = ``generate`` (the default), ``download`` (``on="download"``), or another path of the API (``path="/v2/logs"``).
Faults in different slots (see :data:`KINDS`) apply to the same request together, such as a ``slow`` and a ``reset``, or
a ``fewer`` and a ``shape``. If several faults share a slot, the one added first wins.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from airflow_provider_imagen.sandbox.envelopes import Envelope  # noqa: TC001 - check_values reads the annotations
from airflow_provider_imagen.sandbox.value_checks import Range, check_values

if TYPE_CHECKING:
    from collections.abc import Collection

FaultKind = Literal[
    "status",
    "upstream_4xx",
    "slow",
    "slow_after_billing",
    "hang",
    "reset",
    "cut_body",
    "html",
    "fewer",
    "square",
    "none",
    "error_in_200",
    "wrong_json",
    "shape",
    "damaged_text",
    "usage",
    "bad_base64",
    "nsfw",
    "content_violation",
    "signed_links",
    "withdrawn",
    "cut_image",
    "drip",
    "wrong_content_type",
    "not_an_image",
    "oversized",
    "bomb",
    "redirect",
    "expired",
]
Where = Literal["generate", "download", "api"]
Slot = Literal[
    "before",
    "after",
    "end",
    "images",
    "size",
    "shape",
    "text",
    "usage",
    "content",
    "flags",
    "urls",
    "pace",
]
Value = Literal["null", "empty"]
FaultShape = Literal["A", "B", "C", "D", "E", "data_uri", "b64_json", "base64", "image_base64", "nulls"]
Usage = Literal["usd_spent", "credits_used", "tokens_used", "none", "no_headers", "nothing"]
Damage = Literal["null", "surrogate", "control", "encoding", "escape", "quote", "behind"]
Style = Literal["expires", "amz", "se", "tos"]

_GENERATE: tuple[Where, ...] = ("generate",)
_DOWNLOAD: tuple[Where, ...] = ("download",)
_ANY: tuple[Where, ...] = ("generate", "download", "api")


@dataclass(frozen=True)
class Kind:
    """
    The properties of a kind of fault.

    :param slot: a request gets at most one fault per slot
    :param where: the requests it can apply to, the default first
    :param parameters: its parameters with their defaults
    """

    slot: Slot
    where: tuple[Where, ...]
    parameters: dict[str, Any]


KINDS: dict[FaultKind, Kind] = {
    "status": Kind(
        "end",
        _ANY,
        {
            "status": 500,
            "envelope": "problem",
            "status_as_text": False,
            "message": None,
            "error_kind": None,
            "retry_after": None,
            "retry_after_as_date": False,
            "billed": False,
        },
    ),
    "upstream_4xx": Kind("end", _GENERATE, {"status": 400, "message": "The model rejected the prompt."}),
    "slow": Kind("before", _ANY, {"seconds": 1.0}),
    "slow_after_billing": Kind("after", _GENERATE, {"seconds": 1.0}),
    "hang": Kind("end", _ANY, {"seconds": 600.0, "billed": False, "logged": True}),
    "reset": Kind("end", _ANY, {"billed": False, "logged": True}),
    "cut_body": Kind("end", _GENERATE, {}),
    "html": Kind("end", _ANY, {"status": 502, "billed": False, "logged": True}),
    "fewer": Kind("images", _GENERATE, {"count": 1}),
    "square": Kind("size", _GENERATE, {}),
    "none": Kind("images", _GENERATE, {"value": "null", "billed": True}),
    "error_in_200": Kind("content", _GENERATE, {"message": "The model returned no image.", "billed": False}),
    "wrong_json": Kind("content", _GENERATE, {}),
    "shape": Kind("shape", _GENERATE, {"shape": "A"}),
    "damaged_text": Kind("text", _GENERATE, {"damage": "null"}),
    "usage": Kind("usage", _GENERATE, {"usage": "none"}),
    "bad_base64": Kind("content", _GENERATE, {}),
    "nsfw": Kind("flags", _GENERATE, {}),
    "content_violation": Kind("flags", _GENERATE, {}),
    "signed_links": Kind("urls", _GENERATE, {"seconds": 86400.0, "style": "expires"}),
    "withdrawn": Kind("end", _GENERATE, {"replaced_by": None}),
    "cut_image": Kind("end", _DOWNLOAD, {"bytes_sent": None}),
    "drip": Kind("pace", _DOWNLOAD, {"seconds": 0.1, "chunk_bytes": 1024}),
    "wrong_content_type": Kind("content", _DOWNLOAD, {"content_type": None}),
    "not_an_image": Kind("end", _DOWNLOAD, {}),
    "oversized": Kind("end", _DOWNLOAD, {"content_length": None}),
    "bomb": Kind("end", _DOWNLOAD, {"pixels": 20_000}),
    "redirect": Kind("end", _DOWNLOAD, {"location": None, "hops": 1}),
    "expired": Kind("end", _DOWNLOAD, {"status": 403}),
}
"""Every kind of fault; the module docstring describes them."""

_COMMON = ("kind", "times", "probability", "prompt", "model", "skip", "on", "path")


@dataclass(frozen=True)
class Fault:
    """
    One fault to inject. Parameters that are ``None`` take the kind's default (:data:`KINDS`).

    :param kind: what goes wrong
    :param times: number of requests it applies to; ``None`` = all. A ``withdrawn`` model stays withdrawn
    :param probability: share of the matching requests it applies to, drawn with the sandbox's seed
    :param prompt: only requests or images whose prompt contains this text
    :param model: only requests or images of this model; required for ``withdrawn``
    :param skip: number of matching requests to leave alone first
    :param on: ``generate`` or ``download``; default: the first that the kind supports
    :param path: instead of ``on``: another path of the API, such as ``/v2/logs``
    :param status: HTTP status, 100 to 599
    :param envelope: format of an error body, ``old`` or ``problem`` (``application/problem+json``)
    :param status_as_text: return ``statusCode`` as a string, in the old envelope
    :param message: a string or a list of strings
    :param error_kind: ``error.data.kind`` of the problem envelope
    :param retry_after: value of the ``Retry-After`` header, in seconds
    :param retry_after_as_date: send it as an HTTP date
    :param billed: charge the request although its response is lost
    :param logged: list an unbilled request in ``/v2/logs``, as failed
    :param seconds: time to wait; for ``hang`` the longest, for ``signed_links`` until they expire
    :param count: number of images to generate
    :param value: ``null``, or an ``empty`` list of images
    :param shape: ``A`` to ``E``, or the field that holds the image: ``data_uri`` ``b64_json`` ``base64``
        ``image_base64``, or ``nulls`` for none
    :param damage: ``null`` (U+0000), ``surrogate`` (half a pair), ``control`` (a raw control character), ``encoding``
        (invalid UTF-8), ``escape`` (an unknown one), ``quote`` (not escaped), ``behind`` (text after the JSON)
    :param usage: the only amount in ``meta.usage``, without cost headers (``usd_spent`` ``credits_used``
        ``tokens_used``); ``none`` = headers only, also for a billed ``status``; ``no_headers`` = body only;
        ``nothing`` = neither
    :param style: query format of a signed URL: ``expires`` ``amz`` ``se`` ``tos``
    :param replaced_by: replacement that ``/v1/models/deprecations`` names
    :param bytes_sent: bytes of the image to send before the cut; default: half of them
    :param chunk_bytes: bytes sent at once
    :param content_type: content type to declare; default: that of another image format
    :param content_length: length to declare in bytes; default: none
    :param pixels: width and height of the decoded image
    :param location: a URL, or ``private`` (a link-local address), ``other_port`` (the API's), ``scheme``
        (``file:``), ``downgrade`` (plain http on port 80), ``loop`` (the same URL again)
    :param hops: number of redirects before the image
    :raises ValueError: an unknown kind or value, or a parameter the kind does not have
    """

    kind: FaultKind
    times: Annotated[int | None, Range(least=0)] = 1
    probability: Annotated[float, Range(least=0, most=1)] = 1.0
    prompt: str | None = None
    model: str | None = None
    skip: Annotated[int, Range(least=0)] = 0
    on: Literal["generate", "download"] | None = None
    path: str | None = None
    status: Annotated[int | None, Range(least=100, most=599)] = None
    envelope: Envelope | None = None
    status_as_text: bool | None = None
    message: str | list[str] | None = None
    error_kind: str | None = None
    retry_after: Annotated[float | None, Range(least=0)] = None
    retry_after_as_date: bool | None = None
    billed: bool | None = None
    logged: bool | None = None
    seconds: Annotated[float | None, Range(least=0)] = None
    count: Annotated[int | None, Range(least=1)] = None
    value: Value | None = None
    shape: FaultShape | None = None
    usage: Usage | None = None
    damage: Damage | None = None
    style: Style | None = None
    replaced_by: str | None = None
    bytes_sent: Annotated[int | None, Range(least=0)] = None
    chunk_bytes: Annotated[int | None, Range(least=1)] = None
    content_type: str | None = None
    content_length: Annotated[int | None, Range(least=0)] = None
    pixels: Annotated[int | None, Range(least=1)] = None
    location: str | None = None
    hops: Annotated[int | None, Range(least=0)] = None

    def __post_init__(self) -> None:
        check_values(self)
        kind = KINDS[self.kind]
        given = [name for name in _PARAMETERS if getattr(self, name) is not None]
        if unknown := [name for name in given if name not in kind.parameters]:
            raise ValueError(
                f"A {self.kind!r} fault has no {', '.join(unknown)}; its parameters: "
                f"{', '.join(kind.parameters) or 'none'} (and {', '.join(_COMMON[1:])})"
            )
        if self.path is not None and (self.on is not None or not self.path.startswith("/")):
            raise ValueError(f"path={self.path!r}; allowed: a path of the API such as /v2/logs, without on")
        if self.where not in kind.where:
            raise ValueError(
                f"A {self.kind!r} fault does not apply to {self.where!r}; allowed: {', '.join(kind.where)}"
            )
        if self.kind == "withdrawn" and not self.model:
            raise ValueError("A 'withdrawn' fault needs model")

    @property
    def where(self) -> Where:
        """The requests this fault can apply to."""
        if self.path is not None:
            return "api"
        return self.on or KINDS[self.kind].where[0]

    def setting(self, name: str) -> Any:
        """Return the value of a parameter, or the kind's default."""
        value = getattr(self, name)
        return KINDS[self.kind].parameters.get(name) if value is None else value

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values, without those left at their default."""
        return {"times": self.times} | {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) not in (None, field.default)
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fault:
        """
        Return a fault from JSON values.

        :raises ValueError: an unknown name, kind or value
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            kind = KINDS.get(values.get("kind"))  # type: ignore[arg-type]
            allowed = (*_COMMON, *kind.parameters) if kind else known
            raise ValueError(f"A fault has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        if "kind" not in values:
            raise ValueError(f"A fault needs kind; allowed: {', '.join(get_args(FaultKind))}")
        return cls(**values)


_PARAMETERS = tuple(field.name for field in fields(Fault) if field.name not in _COMMON)

Hits = dict[Slot, Fault]
"""The faults that apply to one request, by slot."""


class _ArmedFault:
    """A fault with its counters."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.matched = 0
        self.fired = 0

    def is_spent(self) -> bool:
        return self.fault.kind != "withdrawn" and self.fault.times is not None and self.fired >= self.fault.times


class ArmedFaults:
    """
    The armed faults, matched to requests. Thread-safe.

    :param seed: seed for faults with a probability
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._armed: list[_ArmedFault] = []
        self._random = random.Random(seed)

    def add(self, fault: Fault) -> None:
        """Arm a fault, after those already armed."""
        with self._lock:
            self._armed.append(_ArmedFault(fault))

    def clear(self) -> None:
        """Disarm all faults and reseed the random decisions."""
        with self._lock:
            self._armed.clear()
            self._random = random.Random(self._seed)

    def armed(self) -> list[Fault]:
        """Return the faults that can still fire."""
        with self._lock:
            return [armed.fault for armed in self._armed if not armed.is_spent()]

    def hits(self, where: Where, *, path: str = "", prompt: str = "", models: Collection[str] = ()) -> Hits:
        """
        Return the faults that apply to a request, and count it against them.

        :param models: every id of the request's model
        """
        hits: Hits = {}
        with self._lock:
            for armed in self._armed:
                fault = armed.fault
                if (
                    fault.where != where
                    or (fault.path is not None and fault.path != path)
                    or (fault.prompt is not None and fault.prompt not in prompt)
                    or (fault.model is not None and fault.model not in models)
                ):
                    continue
                armed.matched += 1
                slot = KINDS[fault.kind].slot
                if armed.matched <= fault.skip or armed.is_spent() or slot in hits:
                    continue
                if fault.probability < 1 and self._random.random() >= fault.probability:
                    continue
                armed.fired += 1
                hits[slot] = fault
        return hits

    def withdrawn(self) -> dict[str, str | None]:
        """Return the models withdrawn by faults, with their replacements."""
        return {
            fault.model: fault.replaced_by
            for fault in self.armed()
            if fault.kind == "withdrawn" and fault.model is not None
        }
