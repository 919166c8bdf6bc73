"""
Read input images: check them before any money is spent, and read them again when a request is sent.

Their bytes are not kept in between, so memory use does not grow with the number of items.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from msgspec.structs import asdict

from airflow_provider_imagen.api.fields import IMAGE_FIELDS
from airflow_provider_imagen.catalogue.input_images import (
    INPUT_ARGUMENT,
    MAX_INPUT_BYTES,
    ImageFile,
    flatten,
    limits_for,
    reference_in,
    reference_kind,
    reference_problem,
)
from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.catalogue.validation import show
from airflow_provider_imagen.exceptions import BadImageError, InvalidRequestError, Problem, StorageError
from airflow_provider_imagen.storage.atomic_write import read_bytes
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.local_files import IrregularFileError
from airflow_provider_imagen.storage.paths import StoragePath, filesystem_of, local_path, protocol_of, stays_below
from airflow_provider_imagen.storage.resize_to_limits import resize_to_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.catalogue.request_builder import ImageRequest

log = logging.getLogger(__name__)

INPUT_NAMES: Final = (INPUT_ARGUMENT, *IMAGE_FIELDS)
"""Arguments that refer to input images."""

_PARALLEL_READS: Final = 4
_PLACEHOLDER_URL: Final = "https://unusable.invalid"
"""Placeholder for an unusable image, so that the rest of its item is validated all the same."""

Arguments = dict[str, Any]
Files = list[tuple[str, tuple[str, bytes, str]]]


class InputReader:
    """
    Reads input images.

    :param open_path: turns an address into a path object
    :param fetch: downloads a URL, for endpoints that require file uploads
    :param roots: the only folders that stored images may be in; ``None`` allows all
    """

    def __init__(
        self,
        *,
        open_path: Callable[[str], StoragePath],
        fetch: Callable[[str], bytes],
        roots: Sequence[StoragePath] | None = None,
    ) -> None:
        self._open_path = open_path
        self._fetch = fetch
        self._roots = roots
        self._decoding = threading.Lock()

    # --- planning ----------------------------------------------------------------------------------------------------

    def resolve(self, items: Sequence[tuple[Arguments, str]], problems: list[Problem]) -> list[Arguments]:
        """
        Return the arguments with a URL, ``data:`` URI or :class:`ImageFile` for every image they refer to.

        Each file is read once, however many items refer to it. It must exist, be readable and contain a complete image.

        :param items: each item's arguments, and the prefix of its field names in problems
        :param problems: receives the problems found
        :raises StorageError: a file that exists, or may exist, cannot be read at the moment
        """
        items = [
            ({**arguments, **{name: _as_text(arguments[name]) for name in INPUT_NAMES if name in arguments}}, where)
            for arguments, where in items
        ]
        addresses = dict.fromkeys(
            reference
            for arguments, _ in items
            for name in INPUT_NAMES
            for value in flatten(arguments.get(name))
            if (reference := reference_in(value)) is not None and reference_kind(reference, field=name) == "path"
        )
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            found = dict(zip(addresses, pool.map(self._inspect, addresses), strict=True))
        return [self._substitute(arguments, where, found, problems) for arguments, where in items]

    def _substitute(
        self, arguments: Arguments, where: str, found: Mapping[str, ImageFile | str], problems: list[Problem]
    ) -> Arguments:
        resolved = dict(arguments)
        for name in INPUT_NAMES:
            if (value := arguments.get(name)) is None:
                continue
            is_single = isinstance(value, (str, Mapping))
            images: list[Any] = []
            for index, part in enumerate(flatten(value)):
                field = f"{where}{name}" if is_single else f"{where}{name}[{index}]"
                reference = reference_in(part)
                image = found.get(reference, reference) if reference else None
                if isinstance(image, str) and reference in found:
                    problems.append(Problem(field, reference, image))
                    image = _PLACEHOLDER_URL
                elif image is None:
                    problems.append(Problem(field, show(part), reference_problem(part)))
                    image = _PLACEHOLDER_URL
                images.append(image)
            resolved[name] = images[0] if is_single else images
        return resolved

    def _inspect(self, address: str) -> ImageFile | str:
        """Return the description of a stored image, or the reason why it cannot be used."""
        try:
            path = self._open_path(address)
        except (ValueError, ImportError) as error:
            return f"the path cannot be opened ({error})"
        try:
            data = self._read_path(path)
        except _UnusableError as error:
            return str(error)
        if data is None:
            return "the file does not exist"
        try:
            with self._decoding:  # an image that has to be decoded is many times larger than its file: one at a time
                info = inspect_image(data)
        except BadImageError as error:
            return f"an image is required. {_without_contents(error)}"
        digest = hashlib.sha256(data).hexdigest()
        return ImageFile(address, digest, len(data), info.mime_type, info.width, info.height)

    def _read_path(self, path: StoragePath) -> bytes | None:
        """
        Return the contents of a stored file, or ``None`` if it does not exist.

        :raises _UnusableError: it may not be read, is not a regular file, or is too large
        :raises StorageError: it cannot be read at the moment
        """
        within = None
        if self._roots is not None:
            if (resolved := _resolve_below(path, self._roots)) is None:
                raise _UnusableError("only files in the folders of [imagen] input_roots are allowed")
            path, within = resolved
        elif (local := local_path(path)) is not None:
            path = Path(os.path.realpath(local))  # without input_roots, symlinks may lead to any regular file
        try:
            size = _size_of(path)
            if size is not None and size > MAX_INPUT_BYTES:
                raise _UnusableError(f"the file has {size:,} bytes; at most {MAX_INPUT_BYTES:,} are allowed")
            return read_bytes(path, within=within, max_bytes=MAX_INPUT_BYTES)
        except IrregularFileError:
            raise _UnusableError("a regular file is required, not a pipe, socket or device") from None
        except (ValueError, ImportError) as error:
            raise _UnusableError(f"the path cannot be opened ({error})") from None

    # --- sending ------------------------------------------------------------------------------------------------------

    def wire(self, request: ImageRequest) -> tuple[Mapping[str, Any], Files | None]:
        """
        Return what to send: a JSON body, or form fields with the files to upload.

        A stored image becomes a ``data:`` URI, or a file if the endpoint takes uploads. Such endpoints accept neither
        URLs nor base64 (docs, gpt-image-1 page), so images given by URL are downloaded first.

        :raises StorageError: a file was deleted or changed since it was checked; the next attempt checks it again
        :raises DownloadError: an image that has to be uploaded cannot be downloaded
        :raises InvalidRequestError: a mask and its image differ in size
        """
        if request.path.endswith("/edits"):
            return self._form(request)
        if not any(isinstance(part, ImageFile) for value in request.body.values() for part in flatten(value)):
            return request.body, None
        body = {
            name: [self._inline(request, name, part) for part in value]
            if isinstance(value, list)
            else self._inline(request, name, value)
            for name, value in request.body.items()
        }
        return body, None

    def _inline(self, request: ImageRequest, name: str, value: Any) -> Any:
        if not isinstance(value, ImageFile):
            return value
        data, mime_type, _ = self._fitted(request, name, value)
        return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"

    def _form(self, request: ImageRequest) -> tuple[Mapping[str, Any], Files]:
        files: Files = []
        form: dict[str, str] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for name, value in request.body.items():
            if name not in IMAGE_FIELDS:
                form[name] = str(value).lower() if isinstance(value, bool) else str(value)
                continue
            parts = value if isinstance(value, list) else [value]
            # Several files are sent as ``image[]``, as the client in the docs' example does.
            part_name = f"{name}[]" if len(parts) > 1 else name
            for number, part in enumerate(parts):
                data, mime_type, size = self._fitted(request, name, part)
                sizes.setdefault(name, size)
                files.append((part_name, (f"{name}-{number}.{mime_type.partition('/')[2]}", data, mime_type)))
        if "mask" in sizes and sizes["mask"] != sizes["image"]:
            raise InvalidRequestError(
                f"mask: its size is {_size_text(sizes['mask'])}, but it must have the size of the first image, "
                f"{_size_text(sizes['image'])}. Nothing was sent.",
                field="mask",
                model=str(request.body.get("model")),
            )
        return form, files

    def _bytes_of(self, value: Any) -> bytes:
        if isinstance(value, ImageFile):
            return self._read(value)
        if value.startswith("data:"):
            try:
                return base64.b64decode(unquote_to_bytes(value.partition(",")[2]), validate=True)
            except (binascii.Error, ValueError):
                raise BadImageError("A data URI does not contain valid base64. Nothing was sent.") from None
        return self._fetch(value)

    def _read(self, image: ImageFile) -> bytes:
        try:
            data = self._read_path(self._open_path(image.address))
        except _UnusableError:  # replaced since it was checked
            data = b""
        if data is None or hashlib.sha256(data).hexdigest() != image.sha256:
            change = "deleted" if data is None else "changed"
            raise StorageError(
                f"The input image {show(image.address)} was {change} after it was checked. Nothing was sent; "
                f"the next attempt checks it again."
            )
        return data

    def _fitted(self, request: ImageRequest, name: str, value: Any) -> tuple[bytes, str, tuple[int, int]]:
        """
        Return the bytes and media type of one image, and its width and height.

        Re-encodes it only if it exceeds limits that the model documents.
        """
        model_id = str(request.body.get("model"))
        model = find_model(model_id)
        limits = limits_for(model.id if model else model_id, request.path, name)
        data = self._bytes_of(value)
        if isinstance(value, ImageFile) and limits.admit(
            mime_type=value.mime_type, size=value.bytes, width=value.width, height=value.height
        ):
            return data, value.mime_type, (value.width, value.height)
        with self._decoding:
            fitted, mime_type = resize_to_limits(data, **asdict(limits))
            info = inspect_image(fitted)
        if fitted is not data:
            log.info(
                "Re-encoded %s to fit the documented limits of %s for %s: %s, %d x %d pixels, %d bytes.",
                show(value.address) if isinstance(value, ImageFile) else "an image",
                model_id,
                name,
                mime_type,
                info.width,
                info.height,
                len(fitted),
            )
        return fitted, mime_type, (info.width, info.height)


class _UnusableError(Exception):
    """A file that cannot be used as input; the message says what is allowed."""


def _resolve_below(path: StoragePath, roots: Sequence[StoragePath]) -> tuple[StoragePath, StoragePath] | None:
    """
    Return the path of a file and the root it is below, both with symlinks resolved; ``None`` if there is no such root.

    A root without a connection id stands for every connection.
    """
    local = local_path(path)
    for root in roots:
        local_root = local_path(root)
        if local is not None and local_root is not None:
            resolved, resolved_root = Path(os.path.realpath(local)), Path(os.path.realpath(local_root))
            if resolved != resolved_root and resolved.is_relative_to(resolved_root):
                return resolved, resolved_root
        elif local is None and local_root is None and _is_below(path, root):
            return path, root
    return None


def _is_below(path: Any, root: Any) -> bool:
    if protocol_of(path) != protocol_of(root) or getattr(root, "conn_id", None) not in (None, path.conn_id):
        return False
    key, root_key = str(path.path), str(root.path).rstrip("/")
    return key.startswith(f"{root_key}/") and stays_below(key.removeprefix(f"{root_key}/"))


def _without_contents(error: BadImageError) -> str:
    """Return why a file is not an image, without the bytes quoted in the error, which may be private."""
    reason = str(error).partition(": ")[0] if error.__cause__ else str(error)
    return re.sub(r" \(starting with \w+\)| \(\d+ bytes\)| b'.*'", "", re.sub(r"The \d+ bytes are", "It is", reason))


def _as_text(value: Any) -> Any:
    """Return an argument with its path objects, alone or in a list or mapping, turned into text."""
    if isinstance(value, Mapping):
        return {key: _as_text(part) if key == "path" else part for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [_as_text(part) for part in value]
    return str(value) if isinstance(value, StoragePath) else value


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _size_of(path: StoragePath) -> int | None:
    """
    Return the size of a file before it is read; ``None`` if unknown, in which case reading it will show why.

    :raises ValueError, ImportError: no installed package supports this kind of store
    """
    local = local_path(path)
    if local is not None:
        try:
            return local.stat().st_size
        except OSError:
            return None
    filesystem, key = filesystem_of(path)
    try:
        size = filesystem.info(key).get("size")
    except Exception:  # every store raises errors of its own
        return None
    return size if isinstance(size, int) else None
