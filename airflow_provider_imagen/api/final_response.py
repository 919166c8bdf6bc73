"""
Read the final response to a request, past every interim one.

``http.client`` skips only ``100 Continue``. It takes any other 1xx (``102 Processing``, ``103 Early Hints``) for the
response itself, and the final one, still to come, for the response to the next request on that connection.
"""

from __future__ import annotations

from http.client import HTTPException, HTTPResponse

_SWITCHING_PROTOCOLS = 101


class UnexpectedUpgradeError(HTTPException):
    """The server switches to a protocol nobody asked for, so what follows cannot be read."""


class FinalResponse(HTTPResponse):
    """A response that is never an interim one (RFC 9110, 15.2); its connection is closed when it cannot be."""

    def begin(self) -> None:
        """
        Read status line and headers, dropping those of interim responses.

        :raises UnexpectedUpgradeError: for ``101 Switching Protocols``, which no request of ours allows
        """
        super().begin()
        while 100 <= self.status < 200:
            if self.status == _SWITCHING_PROTOCOLS:
                raise UnexpectedUpgradeError("101 Switching Protocols")
            self.headers = self.msg = None  # type: ignore[assignment]  # or the next begin() would read nothing
            super().begin()
