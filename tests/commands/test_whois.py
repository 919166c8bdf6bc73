"""``airflow-imagen whois``: where images come from, and whether their marks are intact."""

from __future__ import annotations

import json
import shutil
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from doc_snippets import shown_commands
from msgspec import to_builtins
from PIL import Image
from stored_images import MODEL, store_images

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.storage.provenance import NAMESPACE
from airflow_provider_imagen.storage.save_image import save_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox


@pytest.fixture
def folder(imagen_connection: str, tmp_path: Path) -> Path:
    """Return a folder with the images of two prompts."""
    store_images(output := tmp_path / "pictures", [{"prompt": "A lighthouse", "seed": 7}, "A harbour"])
    return output


@pytest.fixture
def whois(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    def run(*arguments: Any) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        status = main(["whois", *map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = entries(folder)
    for line in lines:
        change(line)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def without_metadata(source: Path, target: Path, image_format: str = "JPEG") -> Path:
    with Image.open(source) as image:
        copy = Image.new("RGB", image.size)
        copy.paste(image)
        copy.save(target, image_format)
    return target


def test_an_image_leads_to_its_task_prompt_and_cost(
    whois: Any, run_dag: Any, sandbox: Sandbox, imagen_connection: str, tmp_path: Path
) -> None:
    with DAG("posters", schedule=None) as dag:
        ImagenGenerateOperator.partial(task_id="paint", seed=7, output_path=str(tmp_path)).expand(prompt=["A fox"])
    run = run_dag(dag)
    (file,) = tmp_path.glob("*.png")
    status, (row,) = whois(file)

    (charge,) = sandbox.ledger()
    assert (status, row["is_identified"], row["evidence"], row["is_unchanged"]) == (0, True, "digest", True)
    assert (row["dag_id"], row["run_id"], row["task_id"], row["map_index"]) == ("posters", run.run_id, "paint", 0)
    assert (row["prompt"], row["seed"], row["model"]) == ("A fox", 7, MODEL)
    assert (row["usd"], row["inference_id"]) == (float(charge.usd), charge.inference_id)
    assert (row["folder"], row["file_name"]) == (str(tmp_path), file.name)
    assert (row["has_metadata"], row["contradictions"], row["has_content_credentials"]) == (True, [], False)
    assert row["digital_source_type"].endswith("/trainedAlgorithmicMedia")


def test_the_facts_are_printed_one_per_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whois", str(folder / "run-000-0.png")]) == 0

    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == str(folder / "run-000-0.png")
    for line in (
        "DAG           postcards",
        "Prompt        A lighthouse",
        "Cost          $0.042",
        "Bytes         unchanged since they were stored",
        "Metadata      present, agrees with the manifest",
        "C2PA          none",
        "Source type   trainedAlgorithmicMedia",
    ):
        assert line in shown
    assert not any(line.startswith("Map index") for line in shown)
    example = shown_commands("whois").splitlines()[2:]
    assert [line[:16].strip() for line in example] == [line[:14].strip() for line in shown[1:]]


def test_a_renamed_copy_without_a_manifest_is_identified_by_its_metadata(
    whois: Any, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copy(folder / "run-001-0.png", tmp_path / "mail-attachment.png")
    status, (row,) = whois(copy)

    assert (status, row["evidence"], row["is_unchanged"], row["folder"]) == (0, "metadata", None, None)
    assert (row["dag_id"], row["prompt"], row["usd"]) == ("postcards", "A harbour", None)


def test_a_renamed_copy_is_found_in_a_manifest_by_its_digest(whois: Any, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copy(folder / "run-001-0.png", tmp_path / "mail-attachment.png")
    status, (row,) = whois(copy, "--folder", folder)

    assert (status, row["evidence"], row["is_unchanged"], row["file_name"]) == (0, "digest", True, "run-001-0.png")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_conversion_that_keeps_the_metadata_is_identified_by_it(
    whois: Any, folder: Path, tmp_path: Path, image_format: str
) -> None:
    with Image.open(folder / "run-000-0.png") as image:
        image.convert("RGB").save(converted := tmp_path / "converted", image_format, xmp=image.info["xmp"])
    status, (row,) = whois(converted, "--folder", folder)

    if image_format == "PNG":  # Pillow writes no XMP into a PNG
        assert (status, row["evidence"]) == (1, None)
    else:
        assert (status, row["evidence"], row["is_unchanged"]) == (0, "metadata", False)
        assert (row["file_name"], row["prompt"], row["usd"]) == (
            "run-000-0.png",
            "A lighthouse",
            entries(folder)[0]["usd"],
        )


def test_a_reencoded_copy_without_metadata_is_unknown(
    whois: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = without_metadata(folder / "run-000-0.png", tmp_path / "copy.jpg")
    status, (row,) = whois(copy, "--folder", folder)

    assert (status, row["is_identified"], row["evidence"], row["dag_id"]) == (1, False, None, None)
    assert main(["whois", str(copy)]) == 1
    assert "nothing: it is unknown" in capsys.readouterr().out


def test_a_file_that_was_replaced_is_not_identified_by_its_name_alone(whois: Any, folder: Path) -> None:
    without_metadata(folder / "run-001-0.png", folder / "run-000-0.png", "PNG")
    status, (row,) = whois(folder / "run-000-0.png")

    assert (status, row["is_identified"], row["evidence"], row["is_unchanged"]) == (1, False, "name", False)


def test_a_preview_is_recognised_but_not_identified_by_its_name(
    whois: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview = folder / entries(folder)[1]["thumbnail"]
    for data in (preview.read_bytes(), b"anything"):
        preview.write_bytes(data)
        status, (row,) = whois(preview)
        assert (status, row["is_identified"], row["evidence"], row["is_unchanged"]) == (1, False, "preview", None)
        assert row["file_name"] == "run-001-0.png"
    assert main(["whois", str(preview)]) == 1
    assert "not compared: the manifest lists no SHA-256 for this file" in capsys.readouterr().out


def test_metadata_of_other_tools_identifies_nothing(
    whois: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:c="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/" '
        'xmp:CreatorTool="Adobe Photoshop 25.0" xmp:CreateDate="2020-01-01T00:00:00" '
        'e:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture" '
        'e:AISystemUsed="Firefly" e:AIPromptInformation="A lighthouse">'
        "<c:AltTextAccessibility>A lighthouse</c:AltTextAccessibility></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    Image.new("RGB", (8, 8)).save(photo := tmp_path / "photo.webp", xmp=packet.encode())
    for arguments in ((), ("--folder", folder)):
        status, (row,) = whois(photo, *arguments)
        assert (status, row["is_identified"], row["evidence"], row["has_metadata"]) == (1, False, None, False)
        assert row["digital_source_type"].endswith("/digitalCapture")
    assert main(["whois", str(photo)]) == 1
    assert "none of this provider" in capsys.readouterr().out


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize("image_format", [None, "jpeg"])
def test_a_reused_image_leads_to_the_task_that_paid_for_it(
    image_format: str | None, whois: Any, run_dag: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def paint(dag_id: str, **options: Any) -> str:
        with DAG(dag_id, schedule=None) as dag:
            ImagenGenerateOperator(task_id="paint", prompt="A fox", output_path=str(tmp_path / dag_id), **options)
        return run_dag(dag).run_id

    paid_by = paint("first", image_format=image_format)
    used_by = paint("second", image_format=image_format, reuse="unchanged", reuse_from=str(tmp_path / "first"))
    (file,) = (tmp_path / "second").glob("paint*")
    status, (row,) = whois(file)

    assert (status, row["is_unchanged"], row["contradictions"]) == (0, True, [])
    assert row["paid_by"] == {"dag_id": "first", "run_id": paid_by, "task_id": "paint", "map_index": None}
    assert (row["dag_id"], row["run_id"]) == ("second", used_by)
    assert main(["whois", str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "  DAG           first" in shown
    assert f"  Used by       DAG second, run {used_by}, task paint" in shown
    assert "  Metadata      present, agrees with the manifest" in shown

    rewrite(tmp_path / "second", lambda line: line.update(model="another/model"))
    assert whois(file)[1][0]["contradictions"] == ["model"]


def test_who_paid_for_a_reused_image_without_metadata_is_unknown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, lambda line: line.update(reused_from="/elsewhere/a.png", file_name="copy.png"))
    without_metadata(folder / "run-000-0.png", folder / "copy.png", "PNG")
    main(["whois", str(folder / "copy.png")])
    shown = capsys.readouterr().out.splitlines()
    assert "  DAG           unknown" in shown
    assert "  Used by       DAG postcards, run run, task paint" in shown


def test_an_inference_id_leads_to_its_images(
    whois: Any, folder: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inference_id = entries(folder)[0]["inference_id"]
    status, (row,) = whois(inference_id, "--folder", folder)
    assert (status, row["file"], row["evidence"]) == (0, str(folder / "run-000-0.png"), "digest")

    monkeypatch.chdir(folder)
    assert whois(inference_id)[0] == 0
    (folder / "run-000-0.png").unlink()
    status, (row,) = whois(inference_id)
    assert (status, row["problem"]) == (1, "the manifest lists this file, but it is missing")
    status, (row,) = whois("gen-nobody")
    assert (status, row["problem"]) == (1, "there is no such file, and no manifest entry with this inference id")


def test_metadata_that_contradicts_the_manifest_is_reported(whois: Any, folder: Path) -> None:
    rewrite(folder, lambda line: line.update(model="another/model"))
    status, (row,) = whois(folder / "run-000-0.png")

    assert (status, row["contradictions"], row["model"]) == (0, ["model"], "another/model")


def test_hostile_text_is_printed_as_one_plain_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[31mred\x1b[0m\n  DAG  forged\u202e[bold]" + "x" * 100_000
    rewrite(folder, lambda line: line.update(prompt=hostile, dag_id=hostile, seed="many", usd=[1]))
    assert main(["whois", str(folder / "run-000-0.png")]) == 0

    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "a [31mred [0m DAG forged [bold]xxx" in " ".join(shown.split())
    assert len(shown) < 3_000
    assert "Cost" not in shown


@pytest.mark.parametrize("seed", ["many", "9" * 10_000, "-1"])
def test_hostile_metadata_is_read_safely(whois: Any, tmp_path: Path, seed: str) -> None:
    values = {"Seed": seed, "Parameters": "[" * 100_000, "DagId": "d" * 500_000, "MapIndex": "1e9"}
    own = "".join(f"<i:{name}>{value}</i:{name}>" for name, value in values.items())
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:i="{NAMESPACE}">{own}</rdf:Description></rdf:RDF></x:xmpmeta>'
    )
    Image.new("RGB", (8, 8)).save(file := tmp_path / "a.webp", xmp=packet.encode())
    status, (row,) = whois(file)

    assert (status, row["evidence"], row["map_index"]) == (0, "metadata", None)
    assert row["seed"] == (-1 if seed == "-1" else None)
    assert len(row["dag_id"]) == 500_000


def test_json_has_the_exact_values(whois: Any, folder: Path) -> None:
    odd = "two  blanks\n\ta line\u202e"
    (folder / "run-000-0.png").rename(renamed := folder / "a  b.png")
    rewrite(folder, lambda line: line.update(prompt=odd, name=odd))
    _, (row,) = whois(renamed)

    assert (row["file"], row["name"], row["prompt"]) == (str(renamed), odd, odd)


def test_an_original_and_its_content_credentials_are_recognised(whois: Any, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(buffer := BytesIO(), "PNG")
    data = buffer.getvalue()
    chunk = b"caBX" + b"a C2PA manifest"
    signed = data[:33] + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]
    lines = entries(folder)
    saved = save_image(signed, folder=folder, stem="converted", image_format="jpeg", owner="ab12")
    (folder / "metadata.jsonl").write_text(json.dumps({**lines[0], **to_builtins(saved.file), "path": None}) + "\n")
    assert saved.file.original is not None
    status, rows = whois(folder / saved.file.original, folder / "converted.jpg")

    assert status == 0
    assert [row["evidence"] for row in rows] == ["original", "digest"]
    assert [row["has_content_credentials"] for row in rows] == [True, False]
    assert [row["is_unchanged"] for row in rows] == [True, True]
    assert {row["file_name"] for row in rows} == {"converted.jpg"}

    copy = shutil.copy(folder / saved.file.original, tmp_path / "renamed.png")
    assert whois(copy, "--folder", folder)[1][0]["evidence"] == "original"
    (folder / saved.file.original).write_bytes(data)
    status, (row,) = whois(folder / saved.file.original)
    assert (status, row["is_identified"], row["evidence"], row["is_unchanged"]) == (1, False, "name", False)
    rewrite(folder, lambda line: line.pop("original_sha256"))
    assert whois(folder / saved.file.original)[1][0]["is_unchanged"] is None


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "."])
def test_names_in_a_manifest_never_lead_out_of_its_folder(whois: Any, folder: Path, name: str) -> None:
    shutil.copy(folder / "run-000-0.png", folder.parent / "outside.png")
    with (folder / "metadata.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"file_name": name, "inference_id": "forged"}) + "\n")
    status, (row,) = whois("forged", "--folder", folder)

    assert (status, row["is_identified"]) == (1, False)
    assert "no such file" in row["problem"]


def test_a_link_in_the_folder_is_not_followed(whois: Any, folder: Path, tmp_path: Path) -> None:
    outside = shutil.move(folder / "run-000-0.png", tmp_path / "outside.png")
    (folder / "run-000-0.png").symlink_to(outside)
    status, (row,) = whois(entries(folder)[0]["inference_id"], "--folder", folder)

    assert (status, row["is_identified"]) == (2, False)
    assert "symbolic link" in row["problem"]


def test_one_unreadable_file_does_not_hide_the_others(whois: Any, folder: Path, tmp_path: Path) -> None:
    status, rows = whois(tmp_path, folder / "run-000-0.png")

    assert status == 2
    assert [row["is_identified"] for row in rows] == [False, True]


def test_a_folder_without_a_manifest_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whois", "a.png", "--folder", str(tmp_path)]) == 2
    assert "has no manifest" in capsys.readouterr().err
