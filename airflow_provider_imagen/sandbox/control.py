"""A client of the control endpoints, for a sandbox in another process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_imagen.sandbox.control_types import Charge, SeenRequest

if TYPE_CHECKING:
    from airflow_provider_imagen.sandbox.faults import Fault


class SandboxControl:
    """
    The control methods of :class:`~airflow_provider_imagen.sandbox.Sandbox`, over HTTP.

    :param url: base URL of the sandbox's API
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @property
    def cdn_url(self) -> str:
        """Base URL of the images."""
        return str(self._call("GET", "settings")["cdn_url"])

    @property
    def api_key(self) -> str:
        """API key that the sandbox accepts."""
        return str(self._call("GET", "settings")["api_key"])

    def add_fault(self, fault: Fault) -> None:
        """Arm a fault, after those already armed."""
        self._call("POST", "faults", fault.to_json())

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._call("DELETE", "faults")

    def configure(self, **settings: Any) -> None:
        """
        Change :class:`settings <airflow_provider_imagen.sandbox.Settings>` until the next :meth:`reset`.

        :raises ValueError: an unknown name, or a value out of range
        """
        self._call("POST", "settings", settings)

    def reset(self) -> None:
        """Drop faults, charges, log, seen requests and images, and restore the initial settings."""
        self._call("POST", "reset", {})

    def ledger(self) -> list[Charge]:
        """Return the charges, oldest first: one per billed request."""
        return [Charge.from_json(values) for values in self._call("GET", "ledger")]

    def seen(self, path: str | None = None) -> list[SeenRequest]:
        """Return the HTTP requests that arrived on either port, oldest first; a path ending in ``/`` is a prefix."""
        query = "" if path is None else f"?path={quote(path, safe='')}"
        return [SeenRequest.from_json(values) for values in self._call("GET", f"seen{query}")]

    def _call(self, method: str, name: str, values: dict[str, Any] | None = None) -> Any:
        from urllib.error import HTTPError
        from urllib.request import ProxyHandler, Request, build_opener

        data = None if values is None else json.dumps(values, default=str).encode()  # Decimal as text
        request = Request(  # noqa: S310 - the caller's own sandbox
            f"{self.url}/_sandbox/{name}", data, {"content-type": "application/json"}, method=method
        )
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
                return json.load(response)
        except HTTPError as error:
            with error:
                if error.code != 400:
                    raise
                raise ValueError(json.load(error)["error"]) from None
