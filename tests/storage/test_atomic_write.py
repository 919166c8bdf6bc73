from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.storage import atomic_write
from airflow_provider_imagen.storage.atomic_write import (
    check_writable,
    file_sizes,
    is_intact,
    read_bytes,
    remove_leftovers,
    write_bytes_atomically,
)

DATA = bytes(range(256)) * 400


def write(path, data=DATA, **options):
    return write_bytes_atomically(path, data, content_type="image/png", **options)


class StoredAt:
    """A path in a faulty store, with only what storage needs of ``ObjectStoragePath``."""

    def __init__(self, filesystem, path, protocol="s3"):
        self.fs, self.path, self.protocol = filesystem, path, protocol

    def joinpath(self, *parts):
        return StoredAt(self.fs, "/".join((self.path, *parts)), self.protocol)

    def __str__(self):
        return f"{self.protocol}://conn@{self.path.lstrip('/')}"

    @property
    def name(self):
        return self.path.rpartition("/")[2]

    @property
    def parent(self):
        return StoredAt(self.fs, self.path.rpartition("/")[0], self.protocol)


class Store(MemoryFileSystem):
    """An in-memory object store that records its PUTs and can fail."""

    cachable = False

    def __init__(self, failure=None, keep=None, buckets=("bucket",)):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.failure, self.keep, self.buckets, self.puts = failure, keep, buckets, []

    def pipe_file(self, path, value, mode="overwrite", **options):
        if mode == "create" and path in self.store:
            raise FileExistsError(path)
        self.puts.append((path, options))
        if self.keep is not None:
            super().pipe_file(path, value[: self.keep])
        if self.failure is not None:
            raise self.failure
        if self.keep is None:
            super().pipe_file(path, value)

    def info(self, path, **options):
        if self.failure is not None:
            raise self.failure
        return {"name": path, "size": 0, "type": "directory"} if path in self.buckets else super().info(path)


# On a disk


def test_a_write_leaves_the_complete_file_and_nothing_else(tmp_path):
    write(tmp_path / "new" / "folders" / "a.png")
    assert (tmp_path / "new" / "folders" / "a.png").read_bytes() == DATA
    assert os.listdir(tmp_path / "new" / "folders") == ["a.png"]


def test_an_existing_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "a.png"
    write(path, b"old")
    with path.open("rb") as reader:
        write(path)
        assert reader.read() == b"old"
    assert path.read_bytes() == DATA


def test_a_file_gets_the_permissions_set_by_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "a.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_an_airflow_path_on_the_local_disk_is_written_as_a_local_file(tmp_path):
    from airflow.sdk import ObjectStoragePath

    write(ObjectStoragePath(f"file://{tmp_path}/new/a.png"))
    write(ObjectStoragePath(f"{tmp_path}/b.png"))
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() == DATA


def test_a_killed_writer_leaves_no_incomplete_file_under_a_final_name(tmp_path):
    """Kill a process that keeps writing large files, at various moments, and check what it leaves behind."""
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from airflow_provider_imagen.storage.atomic_write import write_bytes_atomically
        print("ready", flush=True)
        for number in range(10**6):
            name = Path({str(tmp_path)!r}) / f"{{number % 3}}.png"
            write_bytes_atomically(name, bytes([number % 251]) * 3_000_000, content_type="image/png", owner="me")
            print(number, flush=True)
        """
    )
    leftovers = 0
    for rounds in range(6):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for _ in range(2 + rounds):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in tmp_path.glob("*.png"):
            data = path.read_bytes()
            assert len(data) == 3_000_000
            assert data == data[:1] * len(data)
        found = [name for name in os.listdir(tmp_path) if name.startswith(".imagen-")]
        leftovers += len(found)
        assert remove_leftovers(tmp_path, owner="other") == 0
        assert remove_leftovers(tmp_path, owner="me") == len(found)
        assert all(name.endswith(".png") for name in os.listdir(tmp_path))


def test_a_process_killed_before_the_rename_leaves_only_a_temporary_file(tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from airflow_provider_imagen.storage.atomic_write import write_bytes_atomically
        os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        path = Path({str(tmp_path)!r}, "sub", "a.png")
        write_bytes_atomically(path, b"x" * 100, content_type="image/png", owner="me")
        """
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    (name,) = os.listdir(tmp_path / "sub")
    assert name.startswith(".imagen-me-")
    assert remove_leftovers(tmp_path, owner="me") == 1


def test_leftovers_of_other_tasks_and_unmarked_files_are_kept(tmp_path):
    kept = [".imagen-other-1.part", ".imagen-meme-1.part", ".imagen-me-1.png", "a.part", ".imagen"]
    for name in kept:
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path, owner="me") == 0
    assert remove_leftovers(tmp_path, owner="") == 0
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert remove_leftovers(tmp_path / "missing", owner="me") == 0


def test_exceeding_the_file_size_limit_is_reported_and_leaves_no_file(tmp_path):
    program = textwrap.dedent(
        f"""
        import resource, signal
        from pathlib import Path
        from airflow_provider_imagen.exceptions import StorageError
        from airflow_provider_imagen.storage.atomic_write import write_bytes_atomically
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes_atomically(Path({str(tmp_path)!r}, "a.png"), b"x" * 5000, content_type="image/png")
        except StorageError as error:
            print(error)
        """
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "exceeds this process's file size limit" in output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "the disk reported an I/O error"),
    ],
)
def test_a_disk_error_is_reported_in_words_and_the_old_file_is_kept(tmp_path, monkeypatch, number, said):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic_write.os, "fsync", refuse)
    with pytest.raises(StorageError, match=said) as caught:
        write(path)
    assert str(path) in str(caught.value)
    assert caught.value.retry_helps
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"old"


def test_a_file_in_place_of_a_folder_and_the_reverse_are_reported(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(StorageError, match="a file exists where a directory is needed"):
        write(tmp_path / "a" / "b.png")
    (tmp_path / "c.png").mkdir()
    with pytest.raises(StorageError, match="a directory with this name"):
        write(tmp_path / "c.png")
    assert sorted(os.listdir(tmp_path)) == ["a", "c.png"]


@pytest.mark.parametrize("links", [True, False])
def test_an_existing_file_is_kept_even_without_hard_links(tmp_path, monkeypatch, links):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(atomic_write.os, "link", refuse)
    assert write(tmp_path / "a.png", replace=False) is True
    assert write(tmp_path / "a.png", b"other", replace=False) is False
    assert (tmp_path / "a.png").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a.png"]


def test_exactly_one_of_many_concurrent_writers_claims_a_new_name(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        written = list(pool.map(lambda n: write(tmp_path / "a.png", b"%d" % n, replace=False), range(64)))
    assert written.count(True) == 1
    assert (tmp_path / "a.png").read_bytes() == b"%d" % written.index(True)
    assert os.listdir(tmp_path) == ["a.png"]


def test_many_threads_can_write_the_same_name(tmp_path):
    contents = [bytes([number]) * 50_000 for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write(tmp_path / "sub" / "a.png", data), contents))
    assert (tmp_path / "sub" / "a.png").read_bytes() in contents
    assert os.listdir(tmp_path / "sub") == ["a.png"]


# On an object store


@pytest.mark.parametrize(
    ("protocol", "options"),
    [("s3", {"ContentType": "image/png"}), ("gs", {"content_type": "image/png"}), ("memory", {})],
)
def test_an_object_is_written_in_one_put_with_its_content_type(protocol, options):
    store = Store()
    write(StoredAt(store, "/bucket/x/a.png", protocol))
    assert store.puts == [("/bucket/x/a.png", options)]
    assert store.cat_file("/bucket/x/a.png") == DATA


def test_azure_gets_the_content_type_as_content_settings(monkeypatch):
    from types import ModuleType

    blob = ModuleType("azure.storage.blob")
    blob.ContentSettings = SimpleNamespace
    for name in ("azure", "azure.storage"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "azure.storage.blob", blob)
    store = Store()
    write(StoredAt(store, "/bucket/a.png", "abfs"))
    assert store.puts[0][1]["content_settings"].content_type == "image/png"


def test_memory_paths_of_airflow_and_fsspec_work(memory_folder):
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.io.store import attach

    attach("memory", fs=fsspec.filesystem("memory"))
    write(memory_folder / "a b#?%20🦊.png")
    assert read_bytes(memory_folder / "a b#?%20🦊.png") == DATA
    path = ObjectStoragePath(str(memory_folder)) / "sub" / "c.png"
    write(path)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_a_partially_stored_object_is_an_error_and_is_removed(protocol):
    store = Store(keep=1000)
    with pytest.raises(StorageError, match=f"only 1000 of its {len(DATA)} bytes"):
        write(StoredAt(store, "/bucket/a.png", protocol))
    assert store.find("/bucket") == []


def test_a_shared_file_is_neither_measured_nor_removed():
    """Another writer's newer version has another size; treating it as a broken write of ours would destroy it."""
    store = Store(keep=1000)
    write(StoredAt(store, "/bucket/metadata.jsonl", "memory"), shared=True)
    assert len(store.cat_file("/bucket/metadata.jsonl")) == 1000
    store.failure = ConnectionResetError("reset by peer")
    with pytest.raises(StorageError):
        write(StoredAt(store, "/bucket/metadata.jsonl", "memory"), shared=True)
    assert store.find("/bucket") == ["/bucket/metadata.jsonl"]


def test_a_stale_listing_is_ignored():
    """Another thread's listing can put a stale entry into the store's cache at any moment."""
    store = Store()
    real, results = store.info, [FileNotFoundError(), {"size": 3}]

    def info(path, **options):
        result = results.pop() if results else real(path, **options)
        if isinstance(result, Exception):
            raise result
        return result

    store.info = info
    write(StoredAt(store, "/bucket/a.png"))
    assert results == []
    assert store.cat_file("/bucket/a.png") == DATA


@pytest.mark.parametrize("protocol", ["s3", "gs", "abfs", "memory"])
def test_an_existing_object_is_kept_unless_it_may_be_replaced(protocol, monkeypatch):
    azure = SimpleNamespace(ContentSettings=dict)
    for name, module in (("azure", azure), ("azure.storage", azure), ("azure.storage.blob", azure)):
        monkeypatch.setitem(sys.modules, name, module)  # may not be installed
    store = Store()
    path = StoredAt(store, "/bucket/a.png", protocol)
    assert write(path, replace=False) is True
    assert write(path, b"other", replace=False) is False
    assert store.cat_file("/bucket/a.png") == DATA
    assert write(path, b"other") is True
    assert store.cat_file("/bucket/a.png") == b"other"


def test_the_store_decides_between_two_writers_of_a_new_object():
    class Late(Store):
        def exists(self, path, **options):
            return False  # the other object did not exist yet

    store = Late()
    write(StoredAt(store, "/bucket/a.png"))
    assert write(StoredAt(store, "/bucket/a.png"), b"other", replace=False) is False
    assert store.cat_file("/bucket/a.png") == DATA


def test_a_rejected_put_leaves_the_old_object():
    store = Store(failure=PermissionError("Access Denied"))
    MemoryFileSystem.pipe_file(store, "/bucket/a.png", b"old")
    with pytest.raises(StorageError, match="no permission"):
        write(StoredAt(store, "/bucket/a.png"))
    assert store.cat_file("/bucket/a.png") == b"old"


def test_a_file_like_store_is_cleaned_up_after_a_lost_connection():
    store = Store(failure=ConnectionResetError("reset by peer"), keep=10)
    with pytest.raises(StorageError, match="connection to the store failed"):
        write(StoredAt(store, "/home/a.png", "sftp"))
    assert store.find("/home") == []


class NoCredentialsError(Exception):
    pass


class EndpointConnectionError(Exception):
    pass


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (FileNotFoundError("The specified bucket does not exist"), "bucket or container does not exist"),
        (PermissionError("The AWS Access Key Id you provided does not exist"), "no permission"),
        (NoCredentialsError("Unable to locate credentials"), "name a connection"),
        (EndpointConnectionError("Could not connect to http://127.0.0.1:1/?X-Amz-Signature=abcdef"), "connection to"),
        (TimeoutError(), "connection to"),
        (ImportError("Install s3fs to access S3"), r"pip install 'airflow-provider-imagen\[s3\]'"),
        (ValueError("No filesystem registered for scheme s3"), r"pip install 'airflow-provider-imagen\[s3\]'"),
        (RuntimeError("password=hunter2 odd thing"), "RuntimeError.*odd thing"),
    ],
)
def test_store_errors_become_one_sentence_without_secrets(failure, said):
    with pytest.raises(StorageError, match=said) as caught:
        write(StoredAt(Store(failure=failure), "/bucket/a.png"))
    assert "s3://conn@bucket/a.png" in str(caught.value)
    assert caught.value.__cause__ is None
    assert not any(secret in str(caught.value) for secret in ("abcdef", "hunter2"))


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a?X-Amz-Signature=SECRET&x=1 failed",
        "s3://user:SECRET@bucket/a",
        "Authorization: Bearer SECRET",
        "AccountKey=SECRET;EndpointSuffix=core.windows.net",
        "{'aws_secret_access_key': 'SECRET'}",
        "sig=SECRET&se=2026",
        "token SECRET_TOKEN=SECRET",
    ],
)
def test_secrets_are_removed_from_third_party_messages(text):
    with pytest.raises(StorageError) as caught:
        write(StoredAt(Store(failure=RuntimeError(text)), "/bucket/a.png"))
    assert "SECRET" not in str(caught.value).replace("SECRET_TOKEN", "")


def test_a_missing_store_package_names_the_extra_to_install():
    from airflow.sdk import ObjectStoragePath

    folder = ObjectStoragePath("s3://my_aws@bucket/pictures")
    for act in (check_writable, lambda folder: write(folder / "a.png"), lambda f: is_intact(f / "a", size=1)):
        with pytest.raises(StorageError, match=r"pip install 'airflow-provider-imagen\[s3\]'"):
            act(folder)


# Before paying, and on a retry


def test_a_folder_on_disk_is_created_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_an_unwritable_folder_is_detected_before_paying(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        check_writable(tmp_path / "file" / "folder")
    with pytest.raises(StorageError):
        check_writable(Path("/proc/imagen"))


def test_a_full_disk_is_detected_before_paying(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_write.os, "fsync", refuse)
    with pytest.raises(StorageError, match="disk is full"):
        check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_store_is_checked_by_writing_a_note_to_the_hidden_folder():
    store = Store()
    check_writable(StoredAt(store, "bucket/new/folder"))
    check_writable(StoredAt(store, "bucket/new/folder"))
    assert store.find("") == ["/bucket/new/folder/.imagen/about.txt"]
    assert store.puts[0] == ("bucket/new/folder/.imagen/about.txt", {"ContentType": "text/plain"})
    assert b"airflow-provider-imagen" in store.cat_file("bucket/new/folder/.imagen/about.txt")


class AzureError(Exception):
    def __init__(self, status_code):
        super().__init__("Server failed")
        self.status_code = status_code


class GoogleError(Exception):
    def __init__(self, code):
        super().__init__("Invalid Credentials")
        self.code = code


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (FileNotFoundError("The specified bucket does not exist"), "bucket or container does not exist"),
        (AzureError(404), "bucket or container does not exist"),
        (PermissionError("Access Denied"), r"no permission \("),
        (OSError("Forbidden: https://storage/upload"), r"no permission \("),
        (AzureError(403), r"no permission \("),
        (GoogleError(401), r"no permission \("),
    ],
)
def test_an_unwritable_store_is_detected_before_paying(refusal, said):
    with pytest.raises(StorageError, match=said):
        check_writable(StoredAt(Store(failure=refusal), "bucket/x"))


def test_an_unreachable_store_is_detected_before_paying():
    with pytest.raises(StorageError, match="connection to the store failed"):
        check_writable(StoredAt(Store(failure=ConnectionRefusedError("refused")), "bucket/x"))


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_file_of_a_previous_attempt_is_recognized(kind, tmp_path, memory_folder):
    folder = tmp_path if kind == "disk" else memory_folder
    path = folder / "a.png"
    digest = hashlib.sha256(DATA).hexdigest()
    assert not is_intact(path, size=len(DATA))
    write(path)
    assert is_intact(path, size=len(DATA))
    assert is_intact(path, size=len(DATA), sha256=digest)
    assert not is_intact(path, size=len(DATA) - 1)
    assert not is_intact(path, size=len(DATA), sha256="0" * 64)


def test_a_failed_lookup_is_not_treated_as_a_missing_file():
    store = Store()
    store.info = lambda path, **options: (_ for _ in ()).throw(ConnectionResetError())
    with pytest.raises(StorageError, match="connection"):
        is_intact(StoredAt(store, "bucket/a.png"), size=1)


@given(st.binary(max_size=3000))
def test_any_content_round_trips(data):
    store = Store()
    path = StoredAt(store, "/bucket/a")
    write(path, data)
    assert read_bytes(path) == data


def test_symbolic_links_inside_the_output_folder_are_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(DATA)
    (elsewhere / ".imagen-me-1.part").touch()
    (folder / "sub").symlink_to(elsewhere)
    (folder / "b.png").symlink_to(elsewhere / "a.png")
    path = folder / "sub" / "a.png"
    with pytest.raises(StorageError, match="'sub' in it is a symbolic link"):
        write(path, b"new", within=folder)
    with pytest.raises(StorageError, match="symbolic link"):
        write(folder / "sub" / "deeper" / "a.png", b"new", within=folder)
    with pytest.raises(StorageError, match="symbolic link"):
        read_bytes(path, within=folder)
    with pytest.raises(StorageError, match="symbolic link"):
        read_bytes(folder / "b.png", within=folder)
    with pytest.raises(StorageError, match="symbolic link"):
        file_sizes(folder, ["sub/a.png"])
    assert not is_intact(path, size=len(DATA), within=folder)
    assert not is_intact(folder / "b.png", size=len(DATA), within=folder)
    assert file_sizes(folder, ["b.png"]) == {}
    assert remove_leftovers(folder, owner="me") == 0
    assert sorted(os.listdir(elsewhere)) == [".imagen-me-1.part", "a.png"]
    assert (elsewhere / "a.png").read_bytes() == DATA


def test_a_symbolic_link_is_replaced_rather_than_written_through(tmp_path):
    target = tmp_path / "private"
    target.write_bytes(b"mine")
    (tmp_path / "a.png").symlink_to(target)
    assert write(tmp_path / "a.png", replace=False) is False
    assert write(tmp_path / "a.png") is True
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "a.png").is_symlink()


@pytest.mark.timeout(20)
def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(StorageError, match="not a regular file"):
        read_bytes(tmp_path / "a.png")
    assert not is_intact(tmp_path / "a.png", size=0)
    assert file_sizes(tmp_path, ["a.png"]) == {}


def test_a_write_only_folder_is_enough():
    """Run without root, which may list everything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o733)
        program = textwrap.dedent(
            f"""
            import os
            from pathlib import Path
            from airflow_provider_imagen.storage.atomic_write import write_bytes_atomically
            if os.getuid() == 0:
                os.setuid(65534)
            write_bytes_atomically(Path({folder!r}, "a.png"), b"x", content_type="image/png")
            """
        )
        subprocess.run([sys.executable, "-c", program], check=True)
        assert Path(folder, "a.png").read_bytes() == b"x"


def test_no_more_than_the_limit_is_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match="more than 1,073,741,824 bytes"):
        read_bytes(tmp_path / "huge")


def test_descriptors_do_not_leak(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        write(tmp_path / "x" / "y" / "a.png", b"1", within=tmp_path)
        read_bytes(tmp_path / "x" / "y" / "a.png", within=tmp_path)
        file_sizes(tmp_path, ["x/y/a.png"])
        check_writable(tmp_path)
        with pytest.raises(StorageError):
            read_bytes(tmp_path / "link" / "passwd", within=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "name", [".imagen", ".imagen/parts", ".imagen/journal", ".imagen/thumbnails", ".imagen/originals"]
)
def test_symbolic_links_in_the_hidden_folder_are_detected_before_paying(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to("/etc")
    with pytest.raises(StorageError, match="symbolic link"):
        check_writable(tmp_path)


# Permissions that a folder needs


@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_cannot_rename_or_replace_is_detected_before_paying(tmp_path, monkeypatch, call):
    """As with mounted object stores, some of which rename but never replace."""
    real, calls = os.replace, []

    def replace(*names, **folders):
        calls.append(names)
        if len(calls) >= call:
            raise OSError(errno.ENOSYS, "Function not implemented")
        real(*names, **folders)

    monkeypatch.setattr(atomic_write.os, "replace", replace)
    with pytest.raises(StorageError, match="can be created there, but not renamed or replaced"):
        check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_cannot_delete_causes_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(name, **_):
        if name in os.listdir(tmp_path):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        raise FileNotFoundError(name)

    monkeypatch.setattr(atomic_write.os, "unlink", refuse)
    check_writable(tmp_path)
    assert "cannot be deleted (permission denied)" in caplog.text


class Strict(Store):
    """A store that refuses some calls and counts all of them."""

    def __init__(self, *refused, error=None):
        super().__init__()
        self.refused, self.error, self.calls = refused, error or PermissionError("Access Denied"), []

    def _call(self, name):
        self.calls.append(name)
        if name in self.refused:
            raise self.error

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._call("overwrite" if path in self.store or f"/{path}" in self.store else "create")
        super().pipe_file(path, value, mode, **options)

    def ls(self, path, detail=True, **options):
        self._call("list")
        return super().ls(path, detail=detail, **options)

    def rm_file(self, path):
        self._call("delete")
        super().rm_file(path)


def test_every_required_operation_is_checked_in_five_calls():
    store = Strict()
    check_writable(StoredAt(store, "bucket/x"), owner="ab12")
    assert store.calls == ["create", "create", "overwrite", "list", "delete"]
    check_writable(StoredAt(store, "bucket/x"), owner="ab12")
    assert store.calls[5:] == ["overwrite", "create", "overwrite", "list", "delete"]
    assert store.find("") == ["/bucket/x/.imagen/about.txt"]


@pytest.mark.parametrize("error", [PermissionError("retention"), AzureError(409), OSError("Forbidden: retention")])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_retention_policy_is_detected_before_paying(error, is_first):
    store = Strict("overwrite", error=error)
    if not is_first:
        MemoryFileSystem.pipe_file(store, "/bucket/x/.imagen/about.txt", b"of an earlier task")
    with pytest.raises(StorageError, match=r"cannot be overwritten .*metadata\.jsonl is.*retention policy"):
        check_writable(StoredAt(store, "bucket/x"), owner="ab12")


def test_a_store_that_cannot_list_is_detected_before_paying():
    with pytest.raises(StorageError, match=r"Cannot list s3://conn@bucket/x: the connection has no permission"):
        check_writable(StoredAt(Strict("list"), "bucket/x"))
    hiding = Store()
    hiding.ls = lambda path, **_: []
    with pytest.raises(StorageError, match="not listed"):
        check_writable(StoredAt(hiding, "bucket/x"))


def test_a_store_that_only_refuses_deletes_causes_a_warning(caplog):
    store = Strict("delete")
    for _ in range(2):
        check_writable(StoredAt(store, "bucket/x"), owner="ab12")
    assert "s3://conn@bucket/x/.imagen/check-ab12.txt cannot be deleted" in caplog.text
    assert store.find("") == ["/bucket/x/.imagen/about.txt", "/bucket/x/.imagen/check-ab12.txt"]


def test_a_file_of_exactly_the_limit_is_read(tmp_path, memory_folder):
    for folder in (tmp_path, memory_folder):
        write(folder / "a.txt", b"1234567890")
        assert read_bytes(folder / "a.txt", max_bytes=10) == b"1234567890"
        with pytest.raises(StorageError, match="more than 9 bytes"):
            read_bytes(folder / "a.txt", max_bytes=9)


def test_a_file_larger_than_its_reported_size_is_read_up_to_the_limit(tmp_path, monkeypatch):
    """Like files in /proc, or files that grow while they are read."""
    path, really_fstat = tmp_path / "a.bin", os.fstat

    def fstat(descriptor):
        status = list(really_fstat(descriptor))
        status[stat.ST_SIZE] = 0
        return os.stat_result(status)

    path.write_bytes(DATA)
    monkeypatch.setattr(os, "fstat", fstat)
    assert read_bytes(path) == DATA
    os.truncate(path, 2**25)
    tracemalloc.start()
    with pytest.raises(StorageError, match="more than 10 bytes"):
        read_bytes(path, max_bytes=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_sizes_are_listed_by_name_on_a_disk_and_in_a_store(tmp_path, memory_folder):
    names = ["a.png", "sub/b.png", "sub/missing.png", "elsewhere/c.png"]
    for folder in (tmp_path, memory_folder):
        for name in ("a.png", "sub/b.png", "sub/not-asked-for.png"):
            write(folder / name, name.encode())
        assert file_sizes(folder, names) == {"a.png": 5, "sub/b.png": 9}


def test_a_folder_in_use_stays_usable(tmp_path):
    for name in ("metadata.jsonl", ".imagen/parts/1.jsonl"):
        write(tmp_path / name)
    check_writable(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".imagen", "metadata.jsonl"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize(("mode", "name"), [(0o1777, "metadata.jsonl"), (0o777, ".imagen")])
def test_a_manifest_or_hidden_folder_of_another_user_is_detected_before_paying(mode, name):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, mode)
        write(Path(folder, name, "x") if name == ".imagen" else Path(folder, name))
        program = textwrap.dedent(
            f"""
            import os
            from pathlib import Path
            from airflow_provider_imagen.storage.atomic_write import check_writable
            os.setuid(65534)
            check_writable(Path({folder!r}))
            """
        )
        run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
        assert f"StorageError: Cannot use {folder}: {name} in it" in run.stderr


def test_an_address_is_shown_with_its_connection_and_without_its_password():
    assert atomic_write.redacted_address(StoredAt(Store(), "/bucket/a.png")) == "s3://conn@bucket/a.png"
    shown = atomic_write.redacted_address(UPath("https://me:hush@h.example/a.png?sig=hush"))
    assert shown == "https://me:***@h.example/a.png"
