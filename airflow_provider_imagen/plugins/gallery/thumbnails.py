"""
Keep small previews on the web server's disk, so that each is made once.

They are named by whoever asks, after the place and the digest of the picture, and shared by all visitors.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import threading
from io import BytesIO
from pathlib import Path
from typing import Final

from airflow_provider_imagen.plugins.gallery.files import FileUnavailableError, media_type
from airflow_provider_imagen.storage.convert import make_thumbnail
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE

PIXELS: Final = 384
"""Longer side of a preview: sharp on screens of double density at the size the page shows."""

MAX_PICTURE_PIXELS: Final = 40_000_000
"""Pixels of the largest picture a preview is made of: more than 8192 by 4096."""

DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024
_PRUNE_EVERY: Final = 64  # previews made by one process


class ThumbnailCache:
    """
    A bounded folder of previews, shared by all processes of the web server.

    :param folder: where they are; made when first needed, readable by this user alone
    :param max_bytes: size the folder is brought back to every 64 previews, oldest first
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._written = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes | None:
        """
        Return a preview, if it has been made.

        :param name: 64 hexadecimal digits
        """
        path = self._path(name)
        try:
            data = path.read_bytes() if path else None
        except OSError:
            return None
        if path and data:
            with contextlib.suppress(OSError):
                os.utime(path)  # what is looked at stays
        return data

    def make(self, name: str, data: bytes) -> bytes:
        """
        Make the preview of a picture, and keep it.

        :param name: 64 hexadecimal digits
        :raises FileUnavailableError: it is no picture, or none a preview is made of
        """
        kind = media_type(BytesIO(data))
        if kind is None:
            raise FileUnavailableError("The stored file is not a picture.")
        if kind == SVG_MIME_TYPE:
            raise FileUnavailableError("A vector picture has no preview.")
        try:
            preview = make_thumbnail(data, pixels=PIXELS, max_pixels=MAX_PICTURE_PIXELS)
        except Exception:
            raise FileUnavailableError("The stored picture is damaged, or too large for a preview.") from None
        self._keep(name, preview)
        return preview

    def _keep(self, name: str, preview: bytes) -> None:
        path = self._path(name)
        if path is None:
            return
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            temporary.write_bytes(preview)
            temporary.replace(path)
        except OSError:  # a full disk is no reason to show nothing
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        with self._lock:
            self._written += 1
            due = self._written % _PRUNE_EVERY == 1
        if due:
            self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        entries = []
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                with contextlib.suppress(OSError):
                    facts = path.stat()
                    entries.append((facts.st_mtime, facts.st_size, path))
        left = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if left <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            left -= size

    def _path(self, name: str) -> Path | None:
        folder = self._open_folder()
        if folder is None or re.fullmatch(r"[0-9a-f]{64}", name) is None:
            return None
        return folder / f"{name}-{PIXELS}.webp"

    def _open_folder(self) -> Path | None:
        """Find or make the folder; one that somebody else has made in its place is not used."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.gettempdir(), f"airflow-imagen-thumbnails-{os.getuid()}")
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                facts = self._folder.lstat()
            except OSError:
                return None
            is_ours = facts.st_uid == os.getuid() and not self._folder.is_symlink() and not facts.st_mode & 0o077
            return self._folder if is_ours else None
