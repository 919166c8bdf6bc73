"""
Skip interim (1xx) responses, so that a request always gets its final response.

``http.client`` skips only ``100 Continue``. It returns any other 1xx (``102 Processing``, ``103 Early Hints``) as the
response; the final response, which arrives later, is then read as that of the next request on the connection.
"""

from __future__ import annotations

from http.client import HTTPException, HTTPResponse

_SWITCHING_PROTOCOLS = 101


class UnexpectedUpgradeError(HTTPException):
    """The server switched protocols unasked, so what follows cannot be read."""


class FinalResponse(HTTPResponse):
    """A response that is never interim (RFC 9110, 15.2)."""

    def begin(self) -> None:
        """
        Read the status line and headers, discarding interim responses.

        :raises UnexpectedUpgradeError: for ``101 Switching Protocols``, which our requests never ask for
        """
        super().begin()
        while 100 <= self.status < 200:
            if self.status == _SWITCHING_PROTOCOLS:
                raise UnexpectedUpgradeError("101 Switching Protocols")
            self.headers = self.msg = None  # type: ignore[assignment]  # begin() returns at once while they are set
            super().begin()
