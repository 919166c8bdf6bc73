"""The gallery, inside Airflow's real web application, showing images that a real task generated."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from airflow.sdk import literal
from PIL import Image
from upath import UPath

from airflow_provider_imagen.links.gallery_link import PicturesLink
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

RACCOON = "A raccoon eating ice-cream"


def links(html: str, attribute: str = "href") -> list[str]:
    return [unescape(found) for found in re.findall(rf'{attribute}="([^"]*)"', html)]


def record(**values: Any) -> dict[str, Any]:
    return {"prompt_index": 0, "image_index": 0, "prompt": "a prompt", "model": "a-model", "usd": 0.01, **values}


def picture_file(path: Path, colour: str = "red") -> dict[str, Any]:
    Image.new("RGB", (40, 30), colour).save(path, format="PNG")
    data = path.read_bytes()
    return {
        "path": str(path),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": 40,
        "height": 30,
    }


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_task_shows_its_images_with_their_details(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=[RACCOON, "A lighthouse"], num_images=2, seed=7, output_path=str(tmp_path))

    page = visit().get(*gallery.task()[:1], params=gallery.task()[1])

    assert page.status_code == 200
    text = page.text
    assert text.count('class="card"') == 4
    assert text.count(f">{RACCOON}<") == 2
    assert "imagen-3.0-generate-002" in text
    assert "seed 7" in text
    assert "4 of 4" in text
    assert "$0.168" in text


def test_every_link_and_image_on_a_page_loads(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=[RACCOON, "A lighthouse"], output_path=str(tmp_path))
    ann = visit()
    path, query = gallery.task()

    seen = {f"{path}?{urlencode(query)}"}
    todo = set(seen)
    while todo:
        address = todo.pop()
        response = ann.get(address)
        assert response.status_code == 200, address
        if response.headers["content-type"].startswith("text/html"):
            found = {link for link in links(response.text) + links(response.text, "src") if link.startswith("/imagen/")}
            todo |= found - seen
            seen |= found
    kinds = {urlsplit(address).path for address in seen}
    assert kinds >= {"/imagen/task", "/imagen/run", "/imagen/dag", "/imagen/picture", "/imagen/file"}


def test_the_full_image_is_the_stored_file_and_the_preview_is_small(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path))
    ann = visit()

    full = ann.get(gallery.file()[0], params=gallery.file()[1])
    preview = ann.get(gallery.file()[0], params=gallery.file(size="thumbnail")[1])

    assert full.content == Path(gallery.xcom("images")[0]["path"]).read_bytes()
    assert full.headers["content-type"] == "image/png"
    assert preview.headers["content-type"] == "image/webp"
    with Image.open(BytesIO(preview.content)) as small:
        assert max(small.size) <= 384


def test_an_image_the_browser_has_cached_is_not_sent_again(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path))
    ann = visit()
    path, query = gallery.file()
    tag = ann.get(path, params=query).headers["etag"]

    again = ann.get(path, params=query, headers={"If-None-Match": tag})

    assert (again.status_code, again.content) == (304, b"")


def test_who_may_not_read_task_instances_still_sees_an_image(forged: Any, visit: Any, tmp_path: Path) -> None:
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

    gallery = forged([record(**picture_file(tmp_path / "a.png"))])
    bob = visit("bob", without={(gallery.run.dag_id, DagAccessEntity.TASK_INSTANCE)})

    answers = [bob.get(path, params=query).status_code for path, query in (gallery.page(), gallery.file())]
    assert answers == [200, 200]
    assert bob.get(gallery.task()[0], params=gallery.task()[1]).status_code == 403


def test_images_are_not_compressed_again(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path), contact_sheet=True)
    sheet = ("/imagen/sheet", {**gallery.ids, "task_id": "paint"})

    for path, query in (gallery.file(), gallery.file(size="thumbnail"), sheet):
        sent = visit().get(path, params=query, headers={"Accept-Encoding": "gzip"})
        assert (sent.status_code, sent.headers["content-encoding"]) == (200, "identity")


def test_a_preview_is_created_only_once(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path))
    ann = visit()
    path, query = gallery.file(size="thumbnail")
    first = ann.get(path, params=query)
    Path(gallery.xcom("images")[0]["path"]).unlink()

    assert ann.get(path, params=query).content == first.content


def test_an_image_page_shows_all_details_and_how_to_make_it_again(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, seed=7, aspect_ratio="16:9", output_path=str(tmp_path))
    (image,) = gallery.xcom("images")

    page = visit().get(gallery.page()[0], params=gallery.page()[1])

    text = unescape(page.text)
    for detail in (
        RACCOON,
        image["path"],
        image["sha256"],
        image["inference_id"],
        f"{image['width']}×{image['height']}",
    ):
        assert detail in text
    code = re.search(r'<pre id="snippet"[^>]*>(.*?)</pre>', text, re.DOTALL)[1]
    made_with = {}
    exec(code.replace("ImagenGenerateOperator(", "made_with.update(").split("\n", 1)[1], {"made_with": made_with})
    assert made_with == {
        "task_id": "paint",
        "prompt": RACCOON,
        "model": "imagen-3.0-generate-002",
        "seed": 7,
        "aspect_ratio": "16:9",
        "output_path": str(tmp_path),
    }


def test_many_images_are_paged_and_come_from_the_manifest(painted: Any, visit: Any, tmp_path: Path) -> None:
    prompts = [f"picture {number} of {'a long story ' * 20}" for number in range(70)]
    gallery = painted(prompt=prompts, output_path=str(tmp_path), concurrency=16)
    assert gallery.xcom("images") == {"manifest": str(tmp_path / "metadata.jsonl"), "count": 70}
    ann = visit()
    path, query = gallery.task()

    first, second = ann.get(path, params=query), ann.get(path, params={**query, "page": 2})

    assert (first.text.count('class="card"'), second.text.count('class="card"')) == (60, 10)
    assert "Page 1 of 2" in first.text
    assert first.text.count('loading="lazy"') == 60
    assert "picture 69 of" in second.text
    assert ann.get(gallery.file(69)[0], params=gallery.file(69, size="thumbnail")[1]).status_code == 200
    run = ann.get("/imagen/run", params={**gallery.ids, "page": 2})
    assert run.text.count('class="card"') == 10


def test_missing_images_are_shown_with_the_reason(painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("fewer", count=1))
    gallery = painted(prompt=RACCOON, num_images=3, output_path=str(tmp_path), on_filtered="accept")
    ann = visit()

    task = ann.get(gallery.task()[0], params=gallery.task()[1]).text
    run = ann.get("/imagen/run", params=gallery.ids).text
    problems = ann.get("/imagen/run", params={**gallery.ids, "show": "problems"}).text

    assert "1 of 3" in task
    assert "Filtered" in task
    assert "withheld 2 of 3 images" in task
    assert "show=problems" in run
    assert "withheld 2 of 3 images" in problems


def test_a_long_list_of_failures_is_paged_like_images(
    painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", times=None, prompt="bad"))
    prompts = ["good", *(f"bad {number}" for number in range(70))]
    gallery = painted(prompt=prompts, output_path=str(tmp_path), on_failure="accept", concurrency=16)
    ann = visit()
    path, query = gallery.task()

    pages = [ann.get(path, params={**query, "page": number}).text for number in (1, 2)]
    (more,) = {link for link in links(pages[0]) if link.endswith("show=problems")}

    assert [(page.count('class="card"'), page.count('class="badge failed"')) for page in pages] == [(1, 59), (0, 11)]
    assert ann.get(more).text.count('class="badge failed"') == 60
    assert ann.get(f"{more}&page=2").text.count('class="badge failed"') == 10


def test_a_failed_task_shows_the_images_it_generated(
    painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("fewer", count=1))
    gallery = painted(prompt=RACCOON, num_images=3, output_path=str(tmp_path))

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert str(gallery.run.state) == "failed"
    assert page.text.count('class="card"') == 1
    assert "withheld 2 of 3 images" in page.text


def test_a_page_refers_to_the_log_for_reasons_that_were_not_stored(painted: Any, visit: Any, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("fewer", count=1))
    gallery = painted(prompt=RACCOON, num_images=3, on_filtered="accept")

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert "the reasons are in its log only" in page.text


def test_an_image_that_was_not_stored_is_shown_from_its_url(painted: Any, visit: Any) -> None:
    gallery = painted(prompt=RACCOON)
    (image,) = gallery.xcom("images")

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert image["url"] in links(page.text, "src")
    server = urlsplit(image["url"])
    assert f"img-src 'self' {server.scheme}://{server.netloc};" in page.headers["content-security-policy"]
    assert "the API's URL has expired" in page.text  # for the script to show when it has


def test_mapped_tasks_are_shown_separately_and_totalled(
    run_dag: Callable[..., Any], visit: Any, imagen_connection: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    with DAG("mapped_gallery", schedule=None) as dag:
        ImagenGenerateOperator.partial(task_id="paint", output_path=str(tmp_path)).expand(
            prompt=["one", "two", "three"]
        )
    run = run_dag(dag)
    ids = {"dag_id": "mapped_gallery", "run_id": run.run_id}
    ann = visit()

    whole = ann.get("/imagen/run", params=ids)
    single = ann.get("/imagen/task", params={**ids, "task_id": "paint", "map_index": 1})

    assert whole.text.count('class="card"') == 3
    assert "3 of 3" in whole.text
    assert re.findall(r"<h2>(.*?)</h2>", whole.text) == ["paint"]
    assert [int(number) for number in re.findall(r"\[(\d)\] ·", whole.text)] == [0, 1, 2]
    assert single.text.count('class="card"') == 1
    assert "two" in single.text
    for map_index in range(3):
        link = PicturesLink().get_link(None, ti_key=run.get_task_instance("paint", map_index=map_index).key)
        assert parse_qs(urlsplit(link).query)["map_index"] == [str(map_index)]
        assert ann.get(link).text.count('class="card"') == 1


def test_a_run_with_very_many_tasks_is_counted_in_steps(
    run_dag: Callable[..., Any], visit: Any, monkeypatch: Any
) -> None:
    from airflow.sdk import DAG, task

    from airflow_provider_imagen.plugins.gallery import shared_readers
    from airflow_provider_imagen.plugins.gallery.collection import Collection

    with DAG("very_many", schedule=None) as dag:

        @task
        def paint(number: int, ti: Any = None) -> None:
            ti.xcom_push(key="images", value=[record()])
            ti.xcom_push(key="summary", value={"requested": 1, "made": 1, "usd_spent": 0.01})

        paint.expand(number=list(range(12)))
    ids = {"dag_id": "very_many", "run_id": run_dag(dag).run_id}
    ann = visit()
    passing = iter(range(0, 1_000_000, 4))
    monkeypatch.setattr(shared_readers, "collection", Collection(clock=lambda: float(next(passing))))

    first, second = (ann.get("/imagen/run", params=ids).text for _ in range(2))

    assert "<dd>8</dd>" in first
    assert "8 of 8" not in first
    assert "4 more tasks have not been counted yet. Reload to continue." in first
    assert "12 of 12" in second
    assert "not been counted" not in second


def test_the_newest_runs_of_a_dag_are_listed(painted: Any, visit: Any, tmp_path: Path) -> None:
    first = painted("newest_runs", prompt="first", output_path=str(tmp_path))
    second = painted("newest_runs", prompt="second", output_path=str(tmp_path))

    page = visit().get("/imagen/dag", params={"dag_id": "newest_runs"})

    assert re.findall(r"<h2><a [^>]*>(.*?)</a>", page.text) == [second.run.run_id, first.run.run_id]
    assert page.text.count('class="card"') == 2


# --- empty and expired ------------------------------------------------------------------------------------------------


def test_empty_pages_say_why(run_dag: Callable[..., Any], visit: Any) -> None:
    from airflow.sdk import DAG, task

    with DAG("no_pictures", schedule=None) as dag:

        @task
        def nothing() -> None: ...

        nothing()
    run = run_dag(dag)
    ids = {"dag_id": "no_pictures", "run_id": run.run_id}
    ann = visit()

    assert "has no images" in ann.get("/imagen/task", params={**ids, "task_id": "nothing"}).text
    assert "No task in this run has generated images" in ann.get("/imagen/run", params=ids).text
    assert (
        "No run of this DAG has generated images yet" in ann.get("/imagen/dag", params={"dag_id": "no_pictures"}).text
    )
    gone = ann.get("/imagen/run", params={**ids, "run_id": "never"})
    assert gone.status_code == 404
    assert "This run does not exist, or was deleted" in gone.text


def test_missing_files_are_reported(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path / "pictures"))
    shutil.rmtree(tmp_path / "pictures")
    ann = visit()

    file = ann.get(gallery.file()[0], params=gallery.file()[1])
    page = ann.get(gallery.page()[0], params=gallery.page()[1])

    assert file.status_code == 410
    assert "not there any more" in file.text
    assert "not there any more" in page.text


def test_a_missing_manifest_is_reported(forged: Any, visit: Any, tmp_path: Path) -> None:
    gallery = forged({"manifest": str(tmp_path / "metadata.jsonl"), "count": 1})

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert "cannot be read any more" in page.text


def test_malformed_records_do_not_break_a_page(forged: Any, visit: Any) -> None:
    odd = [None, 3, "text", {}, {"prompt_index": "x"}, record(usd="much", width=[1], seed=True, prompt=7)]
    gallery = forged(odd)

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert page.status_code == 200
    assert page.text.count('class="card"') == 1


def test_out_of_range_values_do_not_break_a_page(forged: Any, visit: Any, tmp_path: Path) -> None:
    """A manifest may hold what no XCom can: numbers too large for a ``float``, and lone surrogates."""
    huge = 10**400
    manifest = tmp_path / "metadata.jsonl"
    gallery = forged({"manifest": str(manifest), "count": 3})
    ids = {**gallery.ids, "task_id": "paint", "map_index": -1}
    odd: list[dict[str, Any]] = [
        {**picture_file(tmp_path / "a.png"), "usd": huge, "bytes": huge, "width": huge, "seed": huge},
        {"usd": float("inf")},
        {"prompt": "half a \ud83e character", "usd": None},
    ]
    lines = [
        record(image_index=number, file_name=f"{number}.png", **ids, **values) for number, values in enumerate(odd)
    ]
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ann = visit()

    task = ann.get(gallery.task()[0], params=gallery.task()[1])

    assert task.status_code == 200
    assert task.text.count("cost unknown") == 3
    for number in range(3):
        page = ann.get(gallery.page(0, number)[0], params=gallery.page(0, number)[1])
        assert page.status_code == 200
        assert str(huge) not in page.text


def test_an_out_of_range_total_counts_as_zero() -> None:
    from airflow_provider_imagen.plugins.gallery.task_results import read_summary

    counts = {"requested": 10**400, "made": 2, "usd_spent": 10**400, "usd_lost": float("nan")}

    found = read_summary(counts)

    assert found is not None
    assert (found.requested, found.made) == (0, 2)
    assert (found.usd_spent, found.usd_lost) == (0.0, 0.0)


def test_a_failures_file_that_is_too_large_is_not_read(
    painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("fewer", count=1))
    gallery = painted(prompt=RACCOON, num_images=3, output_path=str(tmp_path), on_filtered="accept")
    (failures,) = (tmp_path / ".imagen" / "failures").iterdir()
    os.truncate(failures, 65 * 1024 * 1024)

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert "The list of missing images can no longer be read." in page.text
    assert "withheld" not in page.text


def test_a_page_works_without_a_failures_file(forged: Any, visit: Any, tmp_path: Path) -> None:
    gallery = forged([record()], manifest=str(tmp_path / "metadata.jsonl"), failed=1)

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert page.text.count('class="card"') == 1
    assert "cannot be read" not in page.text


# --- access -----------------------------------------------------------------------------------------------------------


def _routes(gallery: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        gallery.task(),
        gallery.page(),
        gallery.file(),
        gallery.file(size="thumbnail"),
        ("/imagen/run", gallery.ids),
        ("/imagen/run", {**gallery.ids, "show": "problems"}),
        ("/imagen/dag", {"dag_id": gallery.run.dag_id}),
        ("/imagen/sheet", {**gallery.ids, "task_id": "paint"}),
        ("/imagen/download", {**gallery.ids, "everything": "true"}),
        ("/imagen/download", {**gallery.ids, "image": "paint:-1:0:0"}),
        ("/imagen/compare", {**gallery.ids, "image": ["paint:-1:0:0", "paint:-1:0:1"]}),
        ("/imagen/matrix", gallery.ids),
    ]


def test_every_route_denies_a_user_without_access_to_the_dag(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, num_images=2, output_path=str(tmp_path), contact_sheet=True)
    ann, bob = visit("ann"), visit("bob", only={"another_dag"})

    for path, query in _routes(gallery):
        assert ann.get(path, params=query).status_code == 200, path
        refused = bob.get(path, params=query)
        assert refused.status_code == 403, path
        assert RACCOON not in refused.text
        assert b"PNG" not in refused.content
        assert b"RIFF" not in refused.content


def test_every_route_is_covered_by_the_access_tests() -> None:
    from airflow_provider_imagen.plugins.gallery.routes import app

    of_one_dag = {"/task", "/run", "/dag", "/picture", "/file", "/compare", "/matrix", "/sheet", "/download"}
    elsewhere = {"/dags", "/review"}  # test_all_dags.py, test_review_page.py
    assert {route.path for route in app.routes} == {*of_one_dag, *elsewhere, "/static/{name}"}


def test_nobody_sees_anything_without_a_session(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, num_images=2, output_path=str(tmp_path))
    nobody = visit(None)

    for path, query in _routes(gallery):
        response = nobody.get(path, params=query)
        assert RACCOON not in response.text
        if path == "/imagen/file":
            assert response.status_code == 401
        else:
            assert response.status_code == 302
            assert urlsplit(response.headers["location"]).path == "/api/v2/auth/login"
            assert path in parse_qs(urlsplit(response.headers["location"]).query)["next"][0]


def test_ids_that_could_reach_other_routes_or_all_dags_show_nothing(visit: Any, painted: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, num_images=2, output_path=str(tmp_path))
    tricks = ["~", "..", ".", "x/../y", "%2e%2e", "a\\b"]
    bob = visit("bob", only={"another_dag", *tricks})

    for trick in tricks:
        for path, query in _routes(gallery):
            for name in {"dag_id", "run_id", "task_id"} & query.keys():
                response = bob.get(path, params={**query, "dag_id": trick, name: trick})
                assert response.status_code in (200, 403, 404), (path, name, trick)
                assert RACCOON not in response.text
                assert 'class="card"' not in response.text


def test_permission_is_checked_again_even_for_cached_records(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path))
    bob = visit("bob")
    assert bob.get(*gallery.file()[:1], params=gallery.file()[1]).status_code == 200

    visit("bob", only=set())

    assert bob.get(*gallery.file()[:1], params=gallery.file()[1]).status_code == 403


# --- what is served ---------------------------------------------------------------------------------------------------


def test_a_record_cannot_expose_a_file_whose_content_its_author_does_not_know(
    forged: Any, visit: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    fields = picture_file(secret)
    gallery = forged(
        [
            record(image_index=0, path=str(secret), bytes=fields["bytes"], sha256="0" * 64),
            record(image_index=1, path=str(secret), bytes=fields["bytes"], sha256=None),
            record(image_index=2, path="/etc/passwd", bytes=os.path.getsize("/etc/passwd"), sha256="0" * 64),
            record(image_index=3, path="/dev/zero", bytes=1_000_000, sha256="0" * 64),
            record(image_index=4, path=str(tmp_path), bytes=4096, sha256="0" * 64),
        ]
    )
    ann = visit()

    for number in range(5):
        for size in ("full", "thumbnail"):
            response = ann.get(gallery.file()[0], params=gallery.file(0, number, size=size)[1])
            assert response.status_code in (404, 410), (number, size)
            assert len(response.content) < 200


def test_a_preview_is_created_only_from_the_image_that_matches_the_record(
    forged: Any, visit: Any, tmp_path: Path
) -> None:
    """A file at the path of a preview may show somebody else's image, so it proves nothing."""
    other = tmp_path / "other"
    (other / ".imagen" / "thumbnails").mkdir(parents=True)
    picture_file(other / "secret.png")
    Image.new("RGB", (40, 30), "red").save(other / ".imagen" / "thumbnails" / "secret.png.webp")
    gallery = forged([record(path=str(other / "secret.png"), bytes=10, sha256="0" * 64)], output_path=str(other))

    response = visit().get(gallery.file()[0], params=gallery.file(size="thumbnail")[1])

    assert response.status_code == 410
    assert b"WEBP" not in response.content


def test_a_file_that_is_not_an_image_is_not_served_even_with_the_right_digest(
    forged: Any, visit: Any, tmp_path: Path
) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html><script>alert(1)</script>")
    data = page.read_bytes()
    gallery = forged(
        [record(path=str(page), bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), mime_type="text/html")]
    )

    response = visit().get(gallery.file()[0], params=gallery.file()[1])

    assert response.status_code == 410
    assert "script" not in response.text


def test_the_bytes_decide_the_content_type_not_the_record(forged: Any, visit: Any, tmp_path: Path) -> None:
    gallery = forged([record(**picture_file(tmp_path / "a.png"), mime_type="text/html")])

    response = visit().get(gallery.file()[0], params=gallery.file()[1])

    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]


@pytest.mark.parametrize("mime_type", ["image/svg+xml", "image/png", None])
def test_a_vector_image_is_only_offered_as_a_download(
    forged: Any, visit: Any, tmp_path: Path, mime_type: str | None
) -> None:
    data = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
    (tmp_path / "a.svg").write_bytes(data)
    fields = {"path": str(tmp_path / "a.svg"), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    gallery = forged([record(**fields, mime_type=mime_type)])
    ann = visit()

    full = ann.get(gallery.file()[0], params=gallery.file()[1])

    assert full.content == data
    assert full.headers["content-type"].startswith("image/svg+xml")
    assert full.headers["content-disposition"].startswith("attachment;")
    assert full.headers["content-disposition"].endswith(".svg")
    assert full.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert full.headers["x-content-type-options"] == "nosniff"
    assert ann.get(gallery.file()[0], params=gallery.file(size="thumbnail")[1]).status_code == 410
    for path, query in (gallery.task(), gallery.page()):
        page = ann.get(path, params=query)
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        if mime_type == "image/svg+xml":
            assert "<img" not in page.text
            assert "/imagen/file" in page.text or path == "/imagen/task"


def test_large_images_are_not_held_in_memory(
    forged: Any, visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_imagen.plugins.gallery import files
    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

    fields = picture_file(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.write(os.urandom(30_000_000))
    data = (tmp_path / "a.png").read_bytes()
    fields |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    store = UPath("memory://gallery/large.png")
    store.write_bytes(data)
    for path, opens in ((fields["path"], files.open_folder), ("memory://gallery/large.png", UPath)):
        where = {"path": path, "bytes": len(data), "sha256": fields["sha256"]}
        image = GalleryImage(ti=TaskInstance("d", "r", "t", -1), prompt_index=0, image_index=0, **where)
        with monkeypatch.context() as patch:
            patch.setattr(files, "open_folder", opens)  # Airflow has no in-memory store
            tracemalloc.start()
            with files.open_image_file(image) as file:
                assert files.media_type(file) == "image/png"
                _, highest = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                file.seek(0)
                assert file.read() == data
        assert highest < 15_000_000
    gallery = forged([record(**fields)])
    assert visit().get(gallery.file()[0], params=gallery.file()[1]).content == data


def test_many_concurrent_visitors_all_get_their_previews(tmp_path: Path) -> None:
    """Creating a preview holds an image and detects its type, which must not wait for another preview."""
    from airflow_provider_imagen.plugins.gallery import files
    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage
    from airflow_provider_imagen.plugins.gallery.thumbnails import ThumbnailCache

    cache = ThumbnailCache(tmp_path / "previews")

    def look(number: int) -> bytes:
        fields = picture_file(tmp_path / f"{number}.webp")
        image = GalleryImage(ti=TaskInstance("d", "r", "t", -1), prompt_index=0, image_index=number, **fields)
        with files.image_bytes(image) as data:
            return cache.make(fields["sha256"], data)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(look, range(64), timeout=60))) == 64


@pytest.mark.parametrize("change", [b"", b"more", b"other"])
def test_a_file_that_changed_is_not_served(forged: Any, visit: Any, tmp_path: Path, change: bytes) -> None:
    fields = picture_file(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes({b"": b"", b"more": data + b"x"}.get(change, data[:-1] + b"x"))
    gallery = forged([record(**fields)])

    for size in ("full", "thumbnail"):
        assert visit().get(gallery.file()[0], params=gallery.file(size=size)[1]).status_code == 410


def test_a_record_cannot_make_the_server_request_a_url(forged: Any, visit: Any, sandbox: Sandbox) -> None:
    paths = [f"{sandbox.url}/v1/models", f"simplecache::{sandbox.url}/v1/models", f"filecache::{sandbox.url}/x"]
    gallery = forged(
        [record(image_index=n, path=path, bytes=10, sha256="0" * 64) for n, path in enumerate(paths)],
        output_path=sandbox.url,
        manifest=f"{sandbox.url}/metadata.jsonl",
        failed=1,
    )
    ann = visit()

    for number in range(len(paths)):
        for size in ("full", "thumbnail"):
            assert ann.get(gallery.file()[0], params=gallery.file(0, number, size=size)[1]).status_code == 410
    assert ann.get(gallery.task()[0], params=gallery.task()[1]).status_code == 200
    assert sandbox.seen("/") == []
    assert sandbox.seen("/v1/models") == []


def test_a_manifest_shows_only_the_lines_of_its_own_task(painted: Any, forged: Any, visit: Any, tmp_path: Path) -> None:
    painted(prompt="a secret prompt", output_path=str(tmp_path))
    gallery = forged(
        {"manifest": str(tmp_path / "metadata.jsonl"), "count": 1}, manifest=str(tmp_path / "metadata.jsonl")
    )

    page = visit().get(gallery.task()[0], params=gallery.task()[1])

    assert "a secret prompt" not in page.text
    assert page.text.count('class="card"') == 0


HARMLESS = {
    *("html", "head", "meta", "title", "script", "link", "body", "a", "header", "nav", "ol", "ul", "li", "main", "div"),
    *("h1", "h2", "h3", "dl", "dt", "dd", "p", "section", "span", "img", "figure", "code", "button", "pre"),
    *("form", "label", "input", "select", "option", "time", "dialog", "zoom-frame", "mark"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}


class Elements(HTMLParser):
    """The elements that a browser would find on a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.scripts: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "data-full")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "</pre></dd><iframe src=//evil.example>",
    "javascript:alert(1)",
    "‮gnp.exe \x00 \x1b[31m",
    "'''\n\"\"\"; import os",
]


def test_hostile_text_stays_text(forged: Any, visit: Any, tmp_path: Path) -> None:
    file = picture_file(tmp_path / "a.png")
    records = []
    for number, text in enumerate(HOSTILE):
        texts = {"prompt": text, "enhanced_prompt": text, "model": text, "inference_id": text, "url": text}
        texts |= {"name": text, "metadata": {text: text, "alt_text": text}}
        texts |= {"arguments": json.dumps({"filename": text, "parameters": {text: text}})}
        records += [record(prompt_index=number, **texts, **file), record(prompt_index=number, image_index=1, **texts)]
    gallery = forged(records)
    ann = visit()

    pages = [gallery.page(number, image) for number in range(len(HOSTILE)) for image in (0, 1)]
    pairs = [[f"paint:-1:{number}:0", f"paint:-1:{number - 1}:1"] for number in range(1, len(HOSTILE))]
    pages += [("/imagen/compare", {**gallery.ids, "image": pair}) for pair in pairs]
    pages += [("/imagen/matrix", {**gallery.ids, "rows": rows}) for rows in ("prompt", "name")]
    for path, query in [gallery.task(), ("/imagen/run", gallery.ids), *pages]:
        page = ann.get(path, params=query)
        assert page.status_code == 200
        elements = Elements(page.text)
        assert elements.names <= HARMLESS
        assert not {name for name in elements.attributes if name.startswith("on") or name in ("style", "srcdoc")}
        assert all(address.startswith(("/", "#")) and address[:2] != "//" for address in elements.addresses)
        assert all(script and script.startswith("/imagen/static/") for script in elements.scripts)


def test_the_snippet_of_a_hostile_prompt_is_one_python_string(forged: Any, visit: Any) -> None:
    import ast

    prompt = "x', **__import__('os').environ) #\n\"\"\""
    gallery = forged([record(prompt=prompt)])

    text = unescape(visit().get(gallery.page()[0], params=gallery.page()[1]).text)

    code = re.search(r'<pre id="snippet"[^>]*>(.*?)</pre>', text, re.DOTALL)[1]
    call = ast.parse(code).body[-1].value
    assert {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}["prompt"] == prompt


def test_only_safe_urls_are_shown_and_none_can_widen_the_policy(forged: Any, visit: Any) -> None:
    unsafe = [
        *("http://intranet.example/a.png", "ftp://x/a", "//evil.example/a", "https://", "javascript:alert(1)"),
        *("data:image/svg+xml,<svg/>", "https://a b;script-src *", "https://x;img-src * /a.png"),
        *("https://*/a.png", "https://*.example/a.png", "https://a.com'/a.png", "https://例え.jp/a.png"),
        *("https://user@*/a.png", "https://[::1/a.png"),
    ]
    gallery = forged([record(image_index=number, url=url) for number, url in enumerate(unsafe)])
    ann = visit()

    page = ann.get(gallery.task()[0], params=gallery.task()[1])

    assert page.status_code == 200
    assert ann.get("/imagen/run", params=gallery.ids).status_code == 200
    assert ann.get("/imagen/dag", params={"dag_id": gallery.run.dag_id}).status_code == 200
    policy = page.headers["content-security-policy"]
    assert page.text.count('class="card"') == len(unsafe)
    assert all(link.startswith("/imagen/static/") for link in links(page.text, "src"))
    assert links(page.text, "data-full") == []
    assert policy.count("script-src") == 1
    assert "default-src 'none'; img-src 'self'; " in policy


def test_every_response_forbids_what_it_does_not_need(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, num_images=2, output_path=str(tmp_path))
    ann = visit()

    for path, query in [*_routes(gallery), ("/imagen/static/gallery.js", {}), ("/imagen/nowhere", {})]:
        response = ann.get(path, params=query)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        if response.headers["content-type"].startswith("text/html"):
            assert not re.search(r"<script>|<style|style=|\son\w+=", response.text)


def test_no_page_reveals_the_key_or_the_connection(painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, num_images=2, output_path=str(tmp_path))
    ann = visit()

    for path, query in _routes(gallery):
        response = ann.get(path, params=query)
        assert sandbox.api_key.encode() not in response.content
        assert b"imagen_default" not in response.content


def test_the_connection_of_a_store_is_not_shown(forged: Any, visit: Any) -> None:
    paths = ["s3://secret_conn@bucket/a@b/c.png", "/pictures/x@y.png"]
    records = [record(image_index=n, path=path, bytes=10, sha256="0" * 64) for n, path in enumerate(paths)]
    gallery = forged(records)
    ann = visit()

    remote, local = (ann.get(gallery.page(0, n)[0], params=gallery.page(0, n)[1]).text for n in range(2))

    assert "secret_conn" not in remote
    assert "<code>s3://bucket/a@b/c.png</code>" in remote
    assert "<code>/pictures/x@y.png</code>" in local


# --- making it again --------------------------------------------------------------------------------------------------


def read_snippet(visit: Any, gallery: Any, *, prompt: int = 0, image: int = 0) -> str:
    path, query = gallery.page(prompt, image)
    page = visit().get(path, params=query).text
    return unescape(re.search(r'<pre id="snippet"[^>]*>(.*?)</pre>', page, re.DOTALL)[1])


@pytest.fixture
def paste(run_dag: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that pastes code into a DAG, runs it and returns the records of its images."""
    from airflow.sdk import DAG

    def run(code: str) -> list[dict[str, Any]]:
        with DAG(f"again_{re.sub(r'[^a-z_]+', '_', request.node.name)[:80]}", schedule=None) as dag:
            exec(code, {})
        return run_dag(dag).get_task_instance("paint").xcom_pull(task_ids="paint", key="images")

    return run


def bodies(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Return the bodies of all requests for images, in the order they were sent."""
    return [request.json for request in sandbox.seen("/v1/images/generations")]


ITEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bare": ({"prompt": RACCOON}, {}),
    "named": (
        {"prompt": RACCOON, "name": "T-100", "campaign": "Frühling", "alt_text": "A raccoon", "num_images": 3},
        {"metadata_columns": ["campaign"], "filename": "{name}/{image}.{extension}", "on_failure": "accept"},
    ),
    "overridden": (
        {"prompt": RACCOON, "aspect_ratio": "16:9", "seed": 11},
        {"aspect_ratio": "1:1", "seed": 3, "enhance_prompt": False, "safety_setting": "block_only_high", "max_usd": 9},
    ),
    "several_requests": (
        {"prompt": "two\r\nlines {{ 7 * 7 }}", "negative_prompt": "no {{ text }}"},
        {"model": "alibaba/wan2.5-t2i-preview", "num_images": 2, "seed": 5},
    ),
    "converted": (
        {"prompt": RACCOON},
        {"image_format": "webp", "thumbnail_pixels": 64, "provenance": {"prompt_writer": "Ann {{ x }}"}},
    ),
}


@pytest.mark.parametrize("is_file_gone", [False, True])
@pytest.mark.parametrize("name", list(ITEMS))
def test_the_snippet_sends_the_same_requests_from_the_record_alone(
    painted: Any, visit: Any, paste: Any, sandbox: Sandbox, tmp_path: Path, name: str, is_file_gone: bool
) -> None:
    item, arguments = ITEMS[name]
    item = {key: literal(value) if isinstance(value, str) else value for key, value in item.items()}
    gallery = painted(prompt=[item], output_path=str(tmp_path / "a"), concurrency=1, **arguments)
    records = gallery.xcom("images")
    sent = bodies(sandbox)
    if is_file_gone:
        shutil.rmtree(tmp_path / "a")

    again = paste(read_snippet(visit, gallery, image=len(records) - 1))

    assert sent
    assert bodies(sandbox)[len(sent) :] == sent
    same = ("prompt", "name", "metadata", "seed", "model", "mime_type", "arguments")
    assert [[record[key] for key in same] for record in again] == [[record[key] for key in same] for record in records]
    assert all(Path(record["path"]).is_relative_to(tmp_path / "a") for record in again)


def test_the_snippet_of_an_image_that_was_not_stored_sends_the_same_request(
    painted: Any, visit: Any, paste: Any, sandbox: Sandbox
) -> None:
    gallery = painted(prompt=RACCOON, aspect_ratio="4:3", num_images=2)

    again = paste(read_snippet(visit, gallery))

    first, second = bodies(sandbox)
    assert first == second
    assert [record["path"] for record in again] == [None, None]


@pytest.mark.parametrize(
    "prompt", ["x {{ 7 * 7 }}", "{% raw %} x {# y #}", "a {% endraw %} b", "whatever.prompt", "two\r\nlines\n"]
)
def test_the_snippet_sends_the_same_prompt_even_if_airflow_would_interpret_it(
    painted: Any, visit: Any, paste: Any, tmp_path: Path, prompt: str
) -> None:
    gallery = painted(prompt=literal(prompt), model="alibaba/wan2.5-t2i-preview", output_path=str(tmp_path))
    assert gallery.xcom("images")[0]["prompt"] == prompt

    (again,) = paste(read_snippet(visit, gallery))

    assert again["prompt"] == prompt


def test_the_snippet_names_the_input_images(
    painted: Any, visit: Any, paste: Any, sandbox: Sandbox, tmp_path: Path
) -> None:
    source = tmp_path / "source.png"
    Image.new("RGB", (512, 512), "red").save(source)
    data_uri = f"data:image/png;base64,{base64.b64encode(source.read_bytes()).decode()}"
    arguments = {"prompt": "night", "model": "flux/kontext-pro/image-to-image", "output_path": str(tmp_path / "a")}
    stored = read_snippet(visit, painted(input_images=str(source), **arguments))
    embedded = read_snippet(visit, painted(input_images=data_uri, **arguments))

    paste(stored)

    first, _, again = bodies(sandbox)
    assert again == first
    assert f"input_images='{source}'," in stored
    assert "# input_images: not recorded" in embedded
    assert "base64" not in embedded


# --- deployment -------------------------------------------------------------------------------------------------------


def test_every_url_keeps_the_base_path(painted: Any, visit: Any, tmp_path: Path) -> None:
    gallery = painted(prompt=RACCOON, output_path=str(tmp_path))
    ann = visit(base_path="/data/airflow")

    page = ann.get("/data/airflow/imagen/task", params=gallery.task()[1])

    assert page.status_code == 200
    addresses = [link for link in links(page.text) + links(page.text, "src") if not link.startswith("#")]
    assert addresses
    assert all(address.startswith("/data/airflow/") for address in addresses)
    (source,) = links(page.text, "src")[-1:]
    assert ann.get(source).headers["content-type"] == "image/webp"


def test_importing_the_plugin_loads_nothing_heavy() -> None:
    """Task processes import the plugin, which may load nothing but the base class of the operator link."""
    code = """
        import sys
        import airflow.plugins_manager
        before = set(sys.modules)
        import airflow_provider_imagen.plugins.imagen
        new = set(sys.modules) - before
        print(sorted(name for name in new if not name.startswith("airflow_provider_imagen")))
        print("airflow_provider_imagen.operators.imagen" in new)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-2:] == ["['airflow.sdk.bases.operatorlink']", "False"]


def test_airflow_finds_the_plugin_by_its_entry_point() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["airflow.plugins"].values()
    module, _, name = target.partition(":")
    assert getattr(__import__(module, fromlist=[name]), name).name == "imagen"


def test_money_in_doubt_is_shown_with_its_requests(painted: Any, visit: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("reset", prompt="lost", billed=True))
    sandbox.add_fault(Fault("status", status=401, path="/v2/logs", times=None))
    gallery = painted(prompt=["good", "lost"], output_path=str(tmp_path), on_failure="accept")
    path, query = gallery.task()
    page = visit().get(path, params=query).text

    assert "In doubt (maximum)" in page
    assert page.count('class="badge in_doubt"') == 1
    assert "could not be looked up" in page
