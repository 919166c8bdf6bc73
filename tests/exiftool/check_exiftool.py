"""
exiftool, the standard metadata tool, reads the provenance and finds the files valid.

``set-up.sh`` installs it where it is missing and runs this.
"""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from io import BytesIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.storage.provenance import DIGITAL_SOURCE_TYPE, Provenance
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

PROVENANCE = Provenance(
    ti_key=TaskInstanceKey(dag_id="daily", task_id="draw", run_id="r1", map_index=3),
    created_at=datetime(2026, 11, 21, 10, 30, tzinfo=UTC),
    model="imagen-3.0-generate-002",
    model_version="002",
    prompt='a <red> & "warm" fox\n🦊',
    prompt_writer="Ada Lovelace",
    alt_text="A fox & its den 🦊",
    enhanced_prompt="a very red fox",
    seed=5,
    parameters={"aspect_ratio": "1:1"},
    inference_id="inf-1",
)

EMBEDDED = {
    "XMP-iptcExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
    "XMP-iptcExt:AIPromptInformation": PROVENANCE.prompt,
    "XMP-iptcExt:AIPromptWriterName": "Ada Lovelace",
    "XMP-iptcExt:AISystemUsed": PROVENANCE.model,
    "XMP-iptcExt:AISystemVersionUsed": "002",
    "XMP-iptcCore:AltTextAccessibility": PROVENANCE.alt_text,
    "XMP-xmp:CreateDate": "2026:11:21 10:30:00+00:00",
    "XMP-xmp:CreatorTool": "airflow-provider-imagen",
    "XMP-imagen:EnhancedPrompt": "a very red fox",
    "XMP-imagen:Seed": 5,
    "XMP-imagen:Parameters": '{"aspect_ratio": "1:1"}',
    "XMP-imagen:InferenceId": "inf-1",
    "XMP-imagen:DagId": "daily",
    "XMP-imagen:RunId": "r1",
    "XMP-imagen:TaskId": "draw",
    "XMP-imagen:MapIndex": 3,
}
EXISTING = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" e:AISystemUsed="another"'
    b' xmlns:c="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5">'
    b"<e:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture</e:DigitalSourceType>"
    b'<c:AltTextAccessibility><rdf:Alt><rdf:li xml:lang="x-default">a dog</rdf:li>'
    b'<rdf:li xml:lang="de">Hund</rdf:li>'
    b"</rdf:Alt></c:AltTextAccessibility></rdf:Description>"
    b'<rdf:Description rdf:about="" xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    b"<e:AISystemUsed>one more</e:AISystemUsed></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def read_metadata(path: str) -> dict[str, object]:
    """Return the XMP of a file by group and name, duplicates as ``Copy1``, if exiftool finds nothing wrong."""
    command = ["exiftool", "-j", "-G1:4", "-a", "-validate", "-warning", "-all", path]
    (found,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["ExifTool:Validate"] == "OK"
    return {name: value for name, value in found.items() if name.startswith("XMP-") and "XMPToolkit" not in name}


@pytest.mark.parametrize(
    ("source", "mode", "options", "target"),
    [
        ("PNG", "RGB", {}, None),
        ("PNG", "RGBA", {}, None),
        ("JPEG", "RGB", {}, None),
        ("JPEG", "L", {"progressive": True}, None),
        ("WEBP", "RGB", {}, None),
        ("WEBP", "RGBA", {"lossless": True}, None),
        ("PNG", "RGB", {}, "jpeg"),
        ("PNG", "RGB", {}, "webp"),
        ("PNG", "RGB", {}, "avif"),
    ],
)
def test_exiftool_reads_every_property_and_finds_no_errors(source, mode, options, target, tmp_path):
    drawn = BytesIO()
    Image.radial_gradient("L").convert(mode).save(drawn, format=source, **options)
    stored = save_image(drawn.getvalue(), folder=tmp_path, stem="fox", provenance=PROVENANCE, image_format=target)
    assert read_metadata(stored.file.path) == EMBEDDED


@pytest.mark.parametrize(("source", "target"), [("PNG", None), ("JPEG", None), ("WEBP", None), ("PNG", "avif")])
def test_existing_metadata_is_merged_without_duplicates_or_contradictions(source, target, tmp_path):
    drawn = BytesIO()
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", EXISTING.decode())
    options = {"pnginfo": text} if source == "PNG" else {"xmp": EXISTING}
    Image.radial_gradient("L").convert("RGB").save(drawn, format=source, **options)
    stored = save_image(drawn.getvalue(), folder=tmp_path, stem="fox", provenance=PROVENANCE, image_format=target)
    assert read_metadata(stored.file.path) == EMBEDDED | {"XMP-xmp:Rating": 5}
