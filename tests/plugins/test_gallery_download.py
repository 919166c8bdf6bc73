"""What a visitor takes from the gallery: a zip of images, one image, a contact sheet."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from zipfile import ZIP_STORED, ZipFile

import httpx
import pytest
from PIL import Image

from airflow_provider_imagen.plugins.gallery import file_routes
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.plugins.gallery.image_archive import write_archive
from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

from .conftest import Gallery
from .test_gallery import links, picture_file, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def download(visit: Any) -> Callable[..., ZipFile]:
    """Return a function that downloads images of a run as a zip."""
    ann = visit()

    def download(gallery: Any, **query: Any) -> ZipFile:
        sent = ann.get("/imagen/download", params={**gallery.ids, **query})
        assert sent.status_code == 200
        assert sent.headers["content-type"] == "application/zip"
        return opened(sent.content)

    return download


def opened(data: bytes) -> ZipFile:
    """Return a zip that is intact."""
    archive = ZipFile(BytesIO(data))
    assert archive.testzip() is None
    assert {entry.compress_type for entry in archive.infolist()} == {ZIP_STORED}
    assert len({name.casefold() for name in archive.namelist()}) == len(archive.namelist())
    return archive


def images_in(archive: ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name not in ("metadata.jsonl", "missing.txt")]


def lines_in(archive: ZipFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]


def image(path: Path, number: int = 0, **values: Any) -> GalleryImage:
    """Return the record of a stored image; without a file yet, one is made."""
    fields = picture_file(path) if not path.exists() else file_fields(path)
    ti = TaskInstance("d", "r", "t")
    return GalleryImage(
        **{"ti": ti, "prompt_index": number, "image_index": 0, "file_name": path.name, **fields, **values}
    )


def file_fields(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- a zip ------------------------------------------------------------------------------------------------------------


def test_a_zip_has_the_selected_images_and_their_lines_of_the_manifest(
    painted: Any, download: Any, tmp_path: Path
) -> None:
    gallery = painted(
        prompt=[{"prompt": f"fox {n}", "name": f"T-{n}"} for n in range(4)],
        filename="foxes/{name}",
        output_path=str(tmp_path),
    )

    archive = download(gallery, image=["paint:-1:2:0", "paint:-1:0:0", "paint:-1:2:0"])

    assert images_in(archive) == ["foxes/T-2.png", "foxes/T-0.png"]
    for name in images_in(archive):
        assert archive.read(name) == (tmp_path / name).read_bytes()
    manifest = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    listed = {line["file_name"]: line for line in manifest}
    for line in lines_in(archive):
        same = listed[line["file_name"]]
        assert line.keys() == same.keys()
        differing = {name for name in line if line[name] != same[name]}
        assert differing <= {"created_at", "request_fingerprint", "response_index"}
    assert "missing.txt" not in archive.namelist()


def test_everything_that_a_search_finds_is_downloaded_in_its_order(
    forged: Any, visit: Any, download: Any, tmp_path: Path
) -> None:
    records = []
    for number in range(70):  # more than a page
        fields = picture_file(tmp_path / f"{number:02}.png", colour=f"rgb({number},0,0)")
        records.append(record(prompt_index=number, prompt=f"{'fox' if number % 2 else 'owl'}", usd=number, **fields))
    gallery = forged(records)

    assert images_in(download(gallery, everything=True)) == [f"{number:02}.png" for number in range(70)]
    found = download(gallery, everything=True, q="fox", sort="-cost")
    assert images_in(found) == [f"{number:02}.png" for number in range(69, 0, -2)]
    assert [line["prompt"] for line in lines_in(found)] == ["fox"] * 35
    on_the_page_of_the_task = download(gallery, everything=True, q="fox", task_id="paint")
    assert len(images_in(on_the_page_of_the_task)) == 35


def test_the_forms_of_the_pages_lead_to_the_zip(forged: Any, visit: Any, tmp_path: Path) -> None:
    gallery = forged([record(prompt_index=n, **picture_file(tmp_path / f"{n}.png")) for n in range(3)])
    for path, query in (gallery.task(), ("/imagen/run", gallery.ids)):
        html = visit().get(path, params=query).text
        (form,) = [part for part in html.split("<form ") if part.startswith('id="selection"')]
        hidden = dict(
            zip(links(form, 'type="hidden" name'), links(form, 'type="hidden" name="[^"]*" value'), strict=True)
        )
        boxes = links(html, 'name="image" value')
        assert boxes == [f"paint:-1:{n}:0" for n in range(3)]
        sent = visit().get(links(form, "action")[0], params={**dict(hidden), "image": boxes[1:]})
        assert images_in(opened(sent.content)) == ["1.png", "2.png"]


def test_images_of_mapped_instances_are_in_one_zip(
    run_dag: Any, download: Any, imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    with DAG("one_zip", schedule=None) as dag:
        ImagenGenerateOperator.partial(task_id="paint", output_path=str(tmp_path)).expand(prompt=["fox", "owl"])
    gallery = Gallery(run_dag(dag))

    for query in ({"everything": True}, {"image": ["paint:0:0:0", "paint:1:0:0"]}):
        archive = download(gallery, **query)
        assert sorted(images_in(archive)) == sorted(path.name for path in tmp_path.glob("*.png"))
        assert [(line["map_index"], line["prompt"]) for line in lines_in(archive)] == [(0, "fox"), (1, "owl")]


@pytest.mark.parametrize(
    ("names", "in_zip"),
    [
        (["a.png", "a.png", "A.PNG"], ["a.png", "a-2.png", "A-3.png"]),
        (["x/a.png", "y/a.png"], ["x/a.png", "y/a.png"]),
        (["../../etc/passwd"], ["t-0-0.png"]),
        (["/etc/passwd"], ["t-0-0.png"]),
        (["a/../b.png", "..", "", None], ["t-0-0.png", "t-1-0.png", "t-2-0.png", "t-3-0.png"]),
        (["..\\..\\b.png", "C:\\x.png"], ["-..-b.png", "C--x.png"]),
        (["C:/x.png", "con.png", "nul"], ["C-/x.png", "_con.png", "_nul.png"]),
        (["metadata.jsonl", "missing.txt"], ["metadata.jsonl.png", "missing.txt.png"]),
        (["a.html", "b.exe", "c.svg"], ["a.html.png", "b.exe.png", "c.png"]),
        (["a\n.png", "b\0.png"], ["t-0-0.png", "t-1-0.png"]),
        (["a.png", "a.png/b.png"], ["a.png", "a.png-b.png"]),
        (["a.png/b.png", "a.png"], ["a.png/b.png", "a-2.png"]),
    ],
    ids=str,
)
def test_names_in_the_zip_are_safe_and_unique(tmp_path: Path, names: list[Any], in_zip: list[str]) -> None:
    fields = picture_file(tmp_path / "stored")
    images = [
        GalleryImage(ti=TaskInstance("d", "r", "t"), prompt_index=number, image_index=0, file_name=name, **fields)
        for number, name in enumerate(names)
    ]

    archive = opened(b"".join(write_archive(images)))

    assert images_in(archive) == in_zip
    assert [line["file_name"] for line in lines_in(archive)] == in_zip
    archive.extractall(tmp_path / "out")
    unpacked = [path for path in (tmp_path / "out").rglob("*.png") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in unpacked) == sorted(in_zip)


def test_what_cannot_be_sent_is_listed_and_breaks_nothing(forged: Any, download: Any, tmp_path: Path) -> None:
    files = [picture_file(tmp_path / f"{n}.png", colour=f"rgb({n},0,0)") for n in range(5)]
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"\x89PNG" + bytes(50))
    (tmp_path / "secret").write_text("secret")
    files[3] = file_fields(tmp_path / "secret")  # a right digest, but no image
    gallery = forged(
        [record(prompt_index=n, **fields) for n, fields in enumerate(files)]
        + [record(prompt_index=5, url="https://x.y")]
    )

    for query in ({"everything": True}, {"image": [f"paint:-1:{n}:0" for n in range(7)]}):
        archive = download(gallery, **query)
        assert images_in(archive) == ["0.png", "4.png"]
        assert [line["prompt_index"] for line in lines_in(archive)] == [0, 4]
        missing = archive.read("missing.txt").decode()
        for number in (1, 2, 3, 5, *((6,) if "image" in query else ())):
            assert f"paint:-1:{number}:0" in missing
        assert missing.count("\n") == 4 + ("image" in query)
        assert "The image was not stored." in missing


def test_a_page_says_that_nothing_is_selected_and_leads_back(forged: Any, visit: Any) -> None:
    gallery = forged([record()])
    for query, back in (({}, "/imagen/run"), ({"task_id": "paint"}, "/imagen/task")):
        found = visit().get("/imagen/download", params=gallery.ids | query)
        assert found.status_code == 404
        assert "No image is selected." in found.text
        assert any(link.startswith(back) for link in links(found.text))


def test_a_zip_of_everything_names_the_tasks_whose_images_it_lacks(
    run_dag: Any, download: Any, imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, task

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    with DAG("names_tasks", schedule=None) as dag:
        made = ImagenGenerateOperator.partial(
            task_id="paint", output_path=str(tmp_path), map_index_template="{{ task.prompt }}"
        ).expand(prompt=["fox", "owl"])
        rejected = ImagenGenerateOperator(task_id="rejected", prompt="hen", seed=-1)
        made >> ImagenGenerateOperator(task_id="empty", prompt=[])
        rejected >> ImagenGenerateOperator(task_id="later", prompt="hare")

        @task
        def lists_nothing(ti: Any = None) -> None:
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.0})

        lists_nothing()
    gallery = Gallery(run_dag(dag))

    archive = download(gallery, everything=True)
    one = download(gallery, everything=True, label="paint")
    none = download(gallery, everything=True, task_id="rejected")

    assert len(images_in(archive)) == 2
    assert archive.read("missing.txt").decode().splitlines() == [
        "later (upstream_failed): It has published no results that can be read.",
        "rejected (failed): It has published no results that can be read.",
        "lists_nothing: The task's records were deleted.",
    ]
    assert "missing.txt" not in one.namelist()
    assert none.read("missing.txt").decode().startswith("rejected (failed): ")


def test_a_zip_names_what_could_not_be_read_in_time(
    run_dag: Any, download: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import DAG, task

    monkeypatch.setattr(file_routes, "DOWNLOAD_SECONDS", -1.0)
    with DAG("out_of_time", schedule=None) as dag:

        @task
        def paint(number: int, ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record(url=f"https://x.y/{number}")])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.0})

        paint.expand(number=list(range(9)))
    gallery = Gallery(run_dag(dag))

    everything = download(gallery, everything=True).read("missing.txt").decode()
    selected = download(gallery, image=["paint:0:0:0"]).read("missing.txt").decode()

    assert "paint [8]: Its images could not be read in time. Download them from its own page.\n" in everything
    assert everything.count("in time") == 1
    assert "Reload" not in everything
    assert selected == "paint:0:0:0: It could not be found in time. Select fewer images.\n"


def test_a_selection_reads_each_task_once_whatever_it_names(
    forged: Any, download: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gallery = forged([record(prompt_index=n, **picture_file(tmp_path / f"{n}.png")) for n in range(2)])
    paths: list[str] = []
    send = httpx.ASGITransport.handle_async_request

    async def record_path(self: Any, request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return await send(self, request)

    monkeypatch.setattr(httpx.ASGITransport, "handle_async_request", record_path)

    archive = download(gallery, image=[f"paint:-1:{number}:0" for number in range(100, 0, -1)])

    assert images_in(archive) == ["1.png"]
    assert archive.read("missing.txt").decode().count("There is no such image") == 99
    assert sum(path.endswith("/xcomEntries/images") for path in paths) == 1


@pytest.mark.parametrize("key", ["", "paint", "paint:0:0", "paint:x:0:0", "paint:-1:0:0:"])
def test_a_selection_that_no_form_sends_is_refused(forged: Any, visit: Any, key: str) -> None:
    gallery = forged([record()])
    assert visit().get("/imagen/download", params=gallery.ids | {"image": key}).status_code == 422
    many = {"image": ["paint:-1:0:0"] * 1001}
    assert visit().get("/imagen/download", params=gallery.ids | many).status_code == 422


@pytest.mark.parametrize("task_id", ["~", "..", "a/b", "x\0"])
def test_a_selection_cannot_reach_other_routes_of_airflows_api(forged: Any, visit: Any, task_id: str) -> None:
    gallery = forged([record(prompt="a secret")])
    found = visit().get("/imagen/download", params=gallery.ids | {"image": f"{task_id}:-1:0:0"})
    assert found.status_code == 404
    assert "secret" not in found.text


def test_two_gigabytes_of_images_take_little_memory(tmp_path: Path) -> None:
    """The same file under many names: each is read and verified as if it were another one."""
    Image.effect_noise((1024, 1024), 90).convert("RGB").save(tmp_path / "0.png")
    with (tmp_path / "0.png").open("ab") as file:
        file.truncate(2_000_000)
    for number in range(1, 1000):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    script = f"""
        import hashlib, re
        from pathlib import Path
        from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
        from airflow_provider_imagen.plugins.gallery.image_archive import write_archive
        from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
        folder = Path({str(tmp_path)!r})
        data = (folder / "0.png").read_bytes()
        images = [
            GalleryImage(
                ti=TaskInstance("d", "r", "t"), prompt_index=n, image_index=0, prompt="a fox " * 50,
                path=str(folder / f"{{n}}.png"), bytes=len(data), sha256=hashlib.sha256(data).hexdigest(),
            )
            for n in range(1000)
        ]
        for piece in write_archive(images[:2]):
            pass
        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
        before, sent = peak(), 0
        for piece in write_archive(images):
            sent += len(piece)
        print(peak() - before, sent)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=os.environ, timeout=110
    )

    megabytes, sent = map(int, ran.stdout.split() or pytest.fail(ran.stderr))
    assert sent > 2_000_000_000
    assert megabytes < 30


@pytest.fixture
def server(airflow_app: Callable[[str], Any]) -> Iterator[int]:
    """Serve Airflow's web application on a port, as its api-server does."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(airflow_app(""), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def test_the_server_stops_when_the_visitor_leaves(forged: Any, visit: Any, server: int, tmp_path: Path) -> None:
    fields = picture_file(tmp_path / "0.png")
    with (tmp_path / "0.png").open("ab") as file:
        file.truncate(20_000_000)
    fields |= file_fields(tmp_path / "0.png")
    gallery = forged([record(prompt_index=n, **fields) for n in range(50)])

    def is_reading() -> bool:
        found = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return any(path.startswith(str(tmp_path)) for path in found)

    def wait_until(is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not is_so() and time.monotonic() < until:
            time.sleep(0.02)
        assert is_so()

    token = visit().cookies["_token"]
    connection = http.client.HTTPConnection("127.0.0.1", server)
    headers = {"Cookie": f"_token={token}", "Accept-Encoding": "gzip"}
    connection.request("GET", f"/imagen/download?{urlencode({**gallery.ids, 'everything': 'true'})}", headers=headers)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-encoding"] == "identity"
    assert response.read(4) == b"PK\x03\x04"
    wait_until(is_reading)
    time.sleep(1)
    assert is_reading()  # it waits for the visitor

    response.close()
    connection.close()

    wait_until(lambda: not is_reading())


# --- one image, and a contact sheet -----------------------------------------------------------------------------------


def test_the_page_of_an_image_offers_its_file_and_its_prompt(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt="A fox", output_path=str(tmp_path))
    path, query = gallery.page()

    html = visit().get(path, params=query).text
    (stored,) = tmp_path.glob("*.png")
    stored.unlink()
    gone = visit().get(path, params=query).text

    assert '" download>Download this image</a>' in html
    assert 'data-copy="prompt"' in html
    assert 'id="prompt">A fox</dd>' in html
    assert "Download this image" not in gone


def test_the_contact_sheet_is_linked_and_served(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=["A fox", "An owl"], output_path=str(tmp_path), contact_sheet=True)
    (sheet,) = tmp_path.glob(".imagen/contact-sheets/*.webp")

    for path, query in (gallery.task(), ("/imagen/run", gallery.ids)):
        (link,) = [link for link in links(visit().get(path, params=query).text) if "/imagen/sheet" in link]
        sent = visit().get(link)
        assert (sent.status_code, sent.content) == (200, sheet.read_bytes())
        assert sent.headers["content-type"] == "image/webp"
        assert "paint-contact-sheet.webp" in sent.headers["content-disposition"]

    sheet.unlink()
    gone = visit().get(link)
    assert gone.status_code == 404
    assert "The contact sheet is not there any more." in gone.text


@pytest.mark.parametrize("trick", ["path", "link", "pipe", "no image", "another task", "no manifest"])
def test_a_summary_cannot_make_the_server_send_another_file_as_a_contact_sheet(
    forged: Any, visit: Any, tmp_path: Path, trick: str
) -> None:
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

    secret = tmp_path / "secret.webp"
    Image.new("RGB", (9, 9)).save(secret)
    manifest = None if trick == "no manifest" else str(tmp_path / "metadata.jsonl")
    gallery = forged([record()], contact_sheet=str(secret), manifest=manifest)
    sheets = tmp_path / ".imagen" / "contact-sheets"
    sheets.mkdir(parents=True)
    task_id = "other" if trick == "another task" else "paint"
    own = sheets / f"{TaskInstanceKey(**gallery.ids, task_id=task_id).identity}.webp"
    if trick == "link":
        own.symlink_to(secret)
    elif trick == "pipe":
        os.mkfifo(own)
    elif trick == "no image":
        own.write_text("secret")
    elif trick in ("another task", "no manifest"):
        own.write_bytes(secret.read_bytes())

    found = visit().get("/imagen/sheet", params={**gallery.ids, "task_id": "paint"})

    assert found.status_code == 404
    assert b"RIFF" not in found.content
