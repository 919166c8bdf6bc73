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

from airflow_provider_imagen.storage.provenance import DIGITAL_SOURCE_TYPE, Provenance
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

PROVENANCE = Provenance(
    ti_key=TaskInstanceKey(dag_id="daily", task_id="draw", run_id="r1", map_index=3),
    created_at=datetime(2026, 11, 21, 10, 30, tzinfo=UTC),
    model="imagen-3.0-generate-002",
    prompt='a <red> & "warm" fox\n🦊',
    enhanced_prompt="a very red fox",
    seed=5,
    parameters={"aspect_ratio": "1:1"},
    metadata={"campaign": "Frühling", "page": None},
    inference_id="inf-1",
)


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
    command = ["exiftool", "-j", "-G1", "-a", "-validate", "-warning", "-all", stored.file.path]
    (found,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["ExifTool:Validate"] == "OK"
    assert {name: value for name, value in found.items() if name.startswith("XMP-") and "XMPToolkit" not in name} == {
        "XMP-iptcExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "XMP-iptcExt:AIPromptInformation": PROVENANCE.prompt,
        "XMP-iptcExt:AISystemUsed": PROVENANCE.model,
        "XMP-xmp:CreateDate": "2026:11:21 10:30:00+00:00",
        "XMP-xmp:CreatorTool": "airflow-provider-imagen",
        "XMP-imagen:EnhancedPrompt": "a very red fox",
        "XMP-imagen:Seed": 5,
        "XMP-imagen:Parameters": '{"aspect_ratio": "1:1"}',
        "XMP-imagen:Metadata": '{"campaign": "Frühling", "page": null}',
        "XMP-imagen:InferenceId": "inf-1",
        "XMP-imagen:DagId": "daily",
        "XMP-imagen:RunId": "r1",
        "XMP-imagen:TaskId": "draw",
        "XMP-imagen:MapIndex": 3,
    }
