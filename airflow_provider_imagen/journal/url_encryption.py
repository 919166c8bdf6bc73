"""Encryption of signed URLs at rest in a journal."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from airflow_provider_imagen.signed_urls import is_signed

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

_PREFIX = "sealed:"


class UrlEncryption:
    """
    Encrypts signed URLs with a key derived from the API key; unsigned URLs stay as they are.

    A retry with the same API key can decrypt them. Fernet comes from ``cryptography``, which Airflow installs.

    :param api_key: the connection's key
    """

    def __init__(self, api_key: str | None) -> None:
        self._secret = hashlib.sha256(b"airflow-provider-imagen journal\0" + (api_key or "").encode()).digest()

    def encrypt(self, url: str) -> str:
        """Return a URL, encrypted if it is signed."""
        return _PREFIX + self._fernet().encrypt(url.encode()).decode() if is_signed(url) else url

    def decrypt(self, text: str) -> str | None:
        """Return the decrypted URL; ``None`` if it was encrypted with another key or is damaged."""
        if not text.startswith(_PREFIX):
            return text
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet().decrypt(text.removeprefix(_PREFIX).encode()).decode()
        except InvalidToken:
            return None

    def _fernet(self) -> Fernet:
        from cryptography.fernet import Fernet

        return Fernet(base64.urlsafe_b64encode(self._secret))
