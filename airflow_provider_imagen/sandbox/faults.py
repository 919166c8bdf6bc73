"""
Faults to inject: what goes wrong, and for which requests.

:data:`KINDS` has every kind with its effect and parameters; ``airflow-imagen sandbox --list-faults`` prints them.
A fault applies to generations (``on="generate"``), to downloads (``on="download"``), or to another path of the API
(``path="/v2/logs"``). Faults in different slots apply to the same request together, such as a ``slow`` and a ``reset``,
or a ``fewer`` and a ``shape``. If several faults share a slot, the one added first wins.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from airflow_provider_imagen.sandbox.envelopes import Envelope  # noqa: TC001 - check_values reads the annotations
from airflow_provider_imagen.sandbox.value_checks import Range, check_choice, check_values, closest_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

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
    :param effect: what happens to the request
    :param parameters: its parameters with their defaults
    """

    slot: Slot
    where: tuple[Where, ...]
    effect: str
    parameters: dict[str, Any]


KINDS: dict[FaultKind, Kind] = {
    "status": Kind(
        "end",
        _ANY,
        "returns an error response",
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
    "upstream_4xx": Kind(
        "end",
        _GENERATE,
        "returns a 500 that wraps a rejection by the model's own service",
        {"status": 400, "message": "The model rejected the prompt."},
    ),
    "slow": Kind("before", _ANY, "waits `seconds`, before anything is billed", {"seconds": 1.0}),
    "slow_after_billing": Kind("after", _GENERATE, "bills, then waits `seconds`", {"seconds": 1.0}),
    "hang": Kind(
        "end",
        _ANY,
        "holds the connection without a response; billed or not",
        {"seconds": 600.0, "billed": False, "logged": True},
    ),
    "reset": Kind("end", _ANY, "resets the TCP connection; billed or not", {"billed": False, "logged": True}),
    "cut_body": Kind("end", _GENERATE, "bills, declares the full body, sends half of it", {}),
    "html": Kind(
        "end", _ANY, "returns a gateway's HTML page; billed or not", {"status": 502, "billed": False, "logged": True}
    ),
    "fewer": Kind("images", _GENERATE, "generates at most `count` images", {"count": 1}),
    "square": Kind("size", _GENERATE, "generates square images, whatever size was requested", {}),
    "none": Kind("images", _GENERATE, "returns `data: null` or `data: []`", {"value": "null", "billed": True}),
    "error_in_200": Kind(
        "content",
        _GENERATE,
        "returns 200 with an `error` inside",
        {"message": "The model returned no image.", "billed": False},
    ),
    "wrong_json": Kind("content", _GENERATE, "returns 200 with JSON in an unknown format", {}),
    "shape": Kind("shape", _GENERATE, "returns another response shape than the model's own", {"shape": "A"}),
    "damaged_text": Kind("text", _GENERATE, "damages the `revised_prompt` of each image", {"damage": "null"}),
    "usage": Kind(
        "usage", _GENERATE, "reports the cost elsewhere, nowhere, or with a billed `status`", {"usage": "none"}
    ),
    "bad_base64": Kind("content", _GENERATE, "returns base64 that cannot be decoded", {}),
    "nsfw": Kind("flags", _GENERATE, "flags every image in `has_nsfw_concepts`", {}),
    "content_violation": Kind("flags", _GENERATE, "flags every image with `content_violation`", {}),
    "signed_links": Kind(
        "urls", _GENERATE, "returns signed URLs that expire after `seconds`", {"seconds": 86400.0, "style": "expires"}
    ),
    "withdrawn": Kind(
        "end", _GENERATE, "returns 404 and lists the model in /v1/models/deprecations", {"replaced_by": None}
    ),
    "cut_image": Kind("end", _DOWNLOAD, "declares the full image, sends half of it", {"bytes_sent": None}),
    "drip": Kind("pace", _DOWNLOAD, "sends `chunk_bytes` every `seconds`", {"seconds": 0.1, "chunk_bytes": 1024}),
    "wrong_content_type": Kind(
        "content", _DOWNLOAD, "declares a content type that does not match the bytes", {"content_type": None}
    ),
    "not_an_image": Kind("end", _DOWNLOAD, "sends JSON with the image's content type", {}),
    "oversized": Kind(
        "end", _DOWNLOAD, "sends an endless body, or declares `content_length`", {"content_length": None}
    ),
    "bomb": Kind("end", _DOWNLOAD, "sends a small PNG that decodes to `pixels` x `pixels`", {"pixels": 20_000}),
    "redirect": Kind("end", _DOWNLOAD, "redirects `hops` times, or to `location`", {"location": None, "hops": 1}),
    "expired": Kind("end", _DOWNLOAD, "responds like S3 to an expired URL: 403 or 404", {"status": 403}),
}
"""Every kind of fault."""

COMMON_PARAMETERS = ("times", "probability", "prompt", "model", "skip", "on", "path")
"""Parameters of every kind."""


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
        _check_parameters(self.kind, [name for name in _PARAMETERS if getattr(self, name) is not None])
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
        if "kind" not in values:
            raise ValueError(f"A fault needs kind; allowed: {', '.join(KINDS)}")
        check_choice("kind", values["kind"], tuple(KINDS))
        _check_parameters(values["kind"], [name for name in values if name not in ("kind", *COMMON_PARAMETERS)])
        return cls(**values)


def _check_parameters(kind: FaultKind, names: Sequence[str]) -> None:
    parameters = KINDS[kind].parameters
    if unknown := [name for name in names if name not in parameters]:
        raise ValueError(
            f"A {kind!r} fault has no {', '.join(unknown)}; its parameters: {', '.join(parameters) or 'none'} "
            f"(and {', '.join(COMMON_PARAMETERS)}){closest_name(unknown[0], (*parameters, *COMMON_PARAMETERS))}"
        )


_PARAMETERS = tuple(field.name for field in fields(Fault) if field.name not in ("kind", *COMMON_PARAMETERS))

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
