"""Encryption of signed URLs at rest in a journal."""

from __future__ import annotations

import base64
import hashlib

from airflow_provider_imagen.signed_urls import is_signed

_MARK = "sealed:"


class UrlEncryption:
    """
    Encrypts signed URLs with a key derived from the API key; unsigned URLs stay as they are.

    A retry with the same API key can decrypt them. Fernet comes from ``cryptography``, which Airflow installs.

    :param api_key: the connection's key
    """

    def __init__(self, api_key: str | None) -> None:
        self._secret = hashlib.sha256(b"airflow-provider-imagen journal\0" + (api_key or "").encode()).digest()

    def close(self, url: str) -> str:
        """Return a URL, encrypted if it is signed."""
        if not is_signed(url):
            return url
        from cryptography.fernet import Fernet

        return _MARK + Fernet(base64.urlsafe_b64encode(self._secret)).encrypt(url.encode()).decode()

    def open(self, text: str) -> str | None:
        """Return the decrypted URL; ``None`` if it was encrypted with another key or is damaged."""
        if not text.startswith(_MARK):
            return text
        from cryptography.fernet import Fernet, InvalidToken

        try:
            return Fernet(base64.urlsafe_b64encode(self._secret)).decrypt(text[len(_MARK) :].encode()).decode()
        except InvalidToken:
            return None
