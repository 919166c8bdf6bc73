"""Keep signed links unreadable while they wait in a journal for their download."""

from __future__ import annotations

import base64
import hashlib

from airflow_provider_imagen.redaction import is_signed

_MARK = "sealed:"


class UrlEncryption:
    """
    Encrypts links that carry a signature, with a key made from the API key; unsigned links stay as they are.

    A retry with the same API key opens them again. Fernet comes from ``cryptography``, which Airflow installs.

    :param api_key: the connection's key
    """

    def __init__(self, api_key: str | None) -> None:
        self._secret = hashlib.sha256(b"airflow-provider-imagen journal\0" + (api_key or "").encode()).digest()

    def close(self, url: str) -> str:
        """Seal a link if it is signed."""
        if not is_signed(url):
            return url
        from cryptography.fernet import Fernet

        return _MARK + Fernet(base64.urlsafe_b64encode(self._secret)).encrypt(url.encode()).decode()

    def open(self, text: str) -> str | None:
        """Give the link back; ``None`` when it was sealed with another key."""
        if not text.startswith(_MARK):
            return text
        from cryptography.fernet import Fernet, InvalidToken

        try:
            return Fernet(base64.urlsafe_b64encode(self._secret)).decrypt(text[len(_MARK) :].encode()).decode()
        except InvalidToken:
            return None
