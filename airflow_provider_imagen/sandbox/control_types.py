"""Charges and requests, as plain data that travels as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal


@dataclass(frozen=True)
class Charge:
    """
    One generation request that was billed.

    :param client_request_id: the valid ``X-Client-Request-Id`` of the request, if it had one
    :param inference_id: the id answered as ``x-inference-id``
    :param model: canonical id of the model
    :param prompt: as sent; empty for models without a prompt
    :param images: number of images billed
    :param usd: amount charged, in USD
    :param at: seconds since the epoch
    """

    client_request_id: str | None
    inference_id: str
    model: str
    prompt: str
    images: int
    usd: Decimal
    at: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; money travels as text."""
        return {**asdict(self), "usd": str(self.usd)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Charge:
        """Read the output of :meth:`to_json`."""
        return cls(**{**values, "usd": Decimal(values["usd"])})


@dataclass(frozen=True)
class SeenRequest:
    """
    One HTTP request that arrived on either port.

    :param host: the port it arrived on
    :param method: in capitals
    :param path: decoded, without the query
    :param query: each name with all its values, in order
    :param headers: names in lower case; the last of several wins
    :param json: the decoded body, ``None`` when it was not JSON
    :param client_request_id: ``X-Client-Request-Id`` as sent, valid or not
    :param status: status of the response; ``None`` before and without one
    :param at: seconds since the epoch
    """

    host: Literal["api", "cdn"]
    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    json: Any = None
    client_request_id: str | None = None
    status: int | None = None
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SeenRequest:
        """Read the output of :meth:`to_json`."""
        return cls(**values)
