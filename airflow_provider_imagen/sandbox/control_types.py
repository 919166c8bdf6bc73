"""Charges and requests as the control endpoints return them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal


@dataclass(frozen=True)
class Charge:
    """
    One generation request that was billed.

    :param client_request_id: ``X-Client-Request-Id`` of the request, if valid
    :param inference_id: ``x-inference-id`` of the response
    :param model: canonical id of the model
    :param prompt: prompt as sent; empty for models without one
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
        """Return JSON values, with money as text."""
        return {**asdict(self), "usd": str(self.usd)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Charge:
        """Return the object from the output of :meth:`to_json`."""
        return cls(**{**values, "usd": Decimal(values["usd"])})


@dataclass(frozen=True)
class SeenRequest:
    """
    One HTTP request that arrived on either port.

    :param host: server that received it: the API or the image host
    :param method: in upper case
    :param path: decoded, without the query
    :param query: values of each parameter, in order
    :param headers: by lower-case name; the last value if a header is repeated
    :param json: decoded body, ``None`` if it was not JSON
    :param client_request_id: ``X-Client-Request-Id`` as sent, valid or not
    :param status: HTTP status of the response; ``None`` before or without one
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
        """Return JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SeenRequest:
        """Return the object from the output of :meth:`to_json`."""
        return cls(**values)
