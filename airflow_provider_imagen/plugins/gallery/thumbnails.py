"""
A cache of previews on the web server's disk.

Callers name a preview after its image's location and digest. All visitors share the cache.
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
"""Longer side of a preview: twice the size on the page, for double-density screens."""

MAX_IMAGE_PIXELS: Final = 40_000_000
"""Maximum number of pixels of an image with a preview: more than 8192 by 4096."""

DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024
_PRUNE_EVERY: Final = 64  # previews written by one process


class ThumbnailCache:
    """
    A bounded folder of previews, shared by all processes of the web server.

    :param folder: created on first use, readable by this user only; default: in the temporary directory
    :param max_bytes: size to which the folder is pruned every 64 previews, least recently used first
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._written = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes | None:
        """
        Return a cached preview, else ``None``.

        :param name: 64 hexadecimal digits
        """
        path = self._path(name)
        try:
            data = path.read_bytes() if path else None
        except OSError:
            return None
        if path and data:
            with contextlib.suppress(OSError):
                os.utime(path)  # pruning is by last use
        return data

    def make(self, name: str, data: bytes) -> bytes:
        """
        Return a new preview of an image, and cache it.

        :param name: 64 hexadecimal digits
        :raises FileUnavailableError: the data is not an image, or no preview can be created
        """
        kind = media_type(BytesIO(data))
        if kind is None:
            raise FileUnavailableError("The stored file is not an image.")
        if kind == SVG_MIME_TYPE:
            raise FileUnavailableError("A vector image has no preview.")
        try:
            preview = make_thumbnail(data, pixels=PIXELS, max_pixels=MAX_IMAGE_PIXELS)
        except Exception:
            raise FileUnavailableError("The stored image is damaged, or too large for a preview.") from None
        self._write(name, preview)
        return preview

    def _write(self, name: str, preview: bytes) -> None:
        path = self._path(name)
        if path is None:
            return
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            temporary.write_bytes(preview)
            temporary.replace(path)
        except OSError:  # such as a full disk; the preview is shown without being cached
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
                    stat = path.stat()
                    entries.append((stat.st_mtime, stat.st_size, path))
        remaining = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if remaining <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            remaining -= size

    def _path(self, name: str) -> Path | None:
        folder = self._open_folder()
        if folder is None or re.fullmatch(r"[0-9a-f]{64}", name) is None:
            return None
        return folder / f"{name}-{PIXELS}.webp"

    def _open_folder(self) -> Path | None:
        """Return the folder, created if missing; ``None`` if another user owns it or can access it."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.gettempdir(), f"airflow-imagen-thumbnails-{os.getuid()}")
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                stat = self._folder.lstat()
            except OSError:
                return None
            is_private = stat.st_uid == os.getuid() and not self._folder.is_symlink() and not stat.st_mode & 0o077
            return self._folder if is_private else None
