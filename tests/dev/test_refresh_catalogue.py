import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import refresh_catalogue


def document(*names, path="/v1/images/generations", required=("model", "prompt"), **fields):
    """Return an OpenAPI document as the vendor publishes it."""
    schema = {
        "type": "object",
        "properties": {"model": {"type": "string", "enum": list(names)}, **fields},
        "required": list(required),
    }
    operation = {"requestBody": {"content": {"application/json": {"schema": schema}}}}
    return {"openapi": "3.0.0", "paths": {path: {"post": operation}}}


PROMPT = {"type": "string", "maxLength": 400, "description": "The vendor's words."}
SIZE = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "width": {"type": "integer", "minimum": 64, "maximum": 1536, "default": 1024},
                "height": {"type": "integer", "minimum": 64, "maximum": 1536, "default": 768},
            },
            "description": "For both height and width, the value must be a multiple of 32.",
        },
        {"type": "string", "enum": ["square", "square_hd"], "description": "The size."},
    ],
    "default": "square",
}


def write(folder, **documents):
    folder.mkdir(exist_ok=True)
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def catalogue(tmp_path):
    return tmp_path / "models.json"


def run(source, catalogue, capsys):
    assert refresh_catalogue.main([*source, "--output", str(catalogue)]) == 0
    return json.loads(catalogue.read_text()), capsys.readouterr().out


def test_a_document_becomes_an_entry_without_the_vendors_descriptions():
    models = refresh_catalogue.from_documents([document("a/model", prompt=PROMPT, image_size=SIZE)], {})
    side = {"type": "integer", "minimum": 64, "maximum": 1536, "multipleOf": 32}
    assert models == {
        "a/model": {
            "endpoint": "/v1/images/generations",
            "kind": "text_to_image",
            "status": "listed",
            "required": ["prompt"],
            "fields": {
                "prompt": {"type": "string", "maxLength": 400},
                "image_size": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {"width": {**side, "default": 1024}, "height": {**side, "default": 768}},
                        },
                        {"type": "string", "enum": ["square", "square_hd"]},
                    ],
                    "default": "square",
                },
            },
        }
    }


def test_limits_stated_only_in_a_description_are_kept():
    models = refresh_catalogue.from_documents(
        [
            document(
                "a/model",
                prompt=PROMPT,
                image_urls={"type": "array", "items": {"type": "string"}, "description": "Supports up to 14 images."},
                size={"type": "string", "description": "Must be between [512x512, 2048x2048]."},
                resolution={"type": "integer", "enum": [720, 1080], "default": "1080"},
            )
        ],
        {},
    )
    assert models["a/model"]["fields"] == {
        "prompt": {"type": "string", "maxLength": 400},
        "image_urls": {"type": "array", "items": {"type": "string"}, "maxItems": 14},
        "size": {"type": "string", "pattern": "^[0-9]+x[0-9]+$", "sides": [512, 2048]},
        "resolution": {"type": "integer", "enum": [720, 1080], "default": 1080},
    }


def test_two_names_in_one_document_are_aliases_of_each_other():
    models = refresh_catalogue.from_documents([document("a/one", "a/two", prompt=PROMPT)], {})
    assert {name: entry["aliases"] for name, entry in models.items()} == {"a/one": ["a/two"], "a/two": ["a/one"]}


def test_uploads_are_added_to_their_model():
    upload = {"type": "object", "properties": {"buffer": {}, "mimetype": {"type": "string"}}}
    edits = document(
        "a/model",
        path="/v1/images/edits",
        required=("model", "prompt", "image"),
        prompt=PROMPT,
        image={"anyOf": [upload, {"type": "array", "items": upload, "maxItems": 16}]},
        mask=upload,
    )
    models = refresh_catalogue.from_documents([edits, document("a/model", prompt=PROMPT)], {})
    assert models["a/model"]["edits"] == {
        "endpoint": "/v1/images/edits",
        "required": ["image", "prompt"],
        "fields": {
            "prompt": {"type": "string", "maxLength": 400},
            "image": {"anyOf": [{"type": "file"}, {"type": "array", "items": {"type": "file"}, "maxItems": 16}]},
            "mask": {"type": "file"},
        },
    }


@pytest.mark.parametrize(
    ("name", "required", "kind"),
    [
        ("a/model", ["prompt"], "text_to_image"),
        ("a/model-edit", ["prompt"], "edit"),
        ("a/model", ["prompt", "image_url"], "edit"),
        ("a/image-to-image", ["prompt", "image_url"], "image_to_image"),
        ("a/sharpen", ["image_url"], "upscale"),
    ],
)
def test_a_new_models_kind_is_inferred_from_its_name_and_required_fields(name, required, kind):
    fields = {field: {"type": "string"} for field in required}
    assert refresh_catalogue.from_documents([document(name, required=required, **fields)], {})[name]["kind"] == kind


def test_details_missing_from_openapi_are_kept():
    earlier = {
        "aliases": ["old-name"],
        "kind": "edit",
        "status": "deprecated",
        "successor": "b/model",
        "price": {
            "usd": "0.1",
            "source": "observed",
            "seen": "2026-04",
            "pricing": {"kind": "fixed"},
            "basis": "a page",
        },
        "ends": {"date": "2026-12-01", "source": "its maker", "seen": "2026-10"},
        "fields": {"image_size": {"anyOf": [{"properties": {"width": {"multipleOf": 32}}}]}},
        "edits": {"price": {"usd": "0.2", "source": "observed", "seen": "2026-04"}},
    }
    unstated = json.loads(json.dumps(SIZE).replace("multiple of 32", "sensible number"))
    documents = [
        document("a/model", prompt=PROMPT, image_size=unstated),
        document("a/model", path="/v1/images/edits", prompt=PROMPT),
    ]
    entry = refresh_catalogue.from_documents(documents, {"a/model": earlier})["a/model"]
    for name in ("aliases", "kind", "status", "successor", "price", "ends"):
        assert entry[name] == earlier[name]
    assert entry["edits"]["price"] == earlier["edits"]["price"]
    assert entry["fields"]["image_size"]["anyOf"][0]["properties"]["width"]["multipleOf"] == 32


@pytest.mark.parametrize("junk", [{}, [], "text", None, {"paths": {"/v1/models": {"get": {}}}}, {"paths": None}])
def test_anything_but_an_image_models_document_is_ignored(junk):
    assert refresh_catalogue.from_documents([junk], {}) == {}


def test_a_folder_is_read_recursively_and_the_summary_lists_changes(tmp_path, catalogue, capsys):
    folder = write(tmp_path / "docs", one=document("a/one", prompt=PROMPT), two=document("a/two", prompt=PROMPT))
    write(folder / "deeper", three=document("a/three", prompt=PROMPT))
    models, output = run([str(folder)], catalogue, capsys)
    assert list(models) == ["a/one", "a/three", "a/two"]
    assert output == "3 models\nadded 3: a/one, a/three, a/two\n"

    before = catalogue.read_text()
    assert run([str(folder)], catalogue, capsys)[1] == "3 models, nothing changed\n"
    assert catalogue.read_text() == before

    write(folder, one=document("a/one", prompt={**PROMPT, "maxLength": 500}))
    (folder / "two.json").unlink()
    assert run([str(folder)], catalogue, capsys)[1] == "2 models\nremoved 1: a/two\nchanged 1: a/one\n"
    changed = [line for line in catalogue.read_text().splitlines() if line not in before.splitlines()]
    assert changed == ['      "prompt": {"maxLength": 500, "type": "string"}']


def test_a_folder_without_models_leaves_the_catalogue_unchanged(tmp_path, catalogue, capsys):
    catalogue.write_text("{}")
    with pytest.raises(SystemExit):
        refresh_catalogue.main([str(write(tmp_path / "docs", other={})), "--output", str(catalogue)])
    assert "no image model found" in capsys.readouterr().err
    assert catalogue.read_text() == "{}"


@pytest.fixture
def live():
    """An API with three models (one with a broken document, one without any) and three retired ones."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            seen.append((parts.path, parse_qs(parts.query), dict(self.headers)))
            root = f"http://127.0.0.1:{self.server.server_port}"
            responses = {
                "/v1/models": {
                    "object": "list",
                    "data": [
                        {"id": "a/new", "aliases": ["new"], "info": {"docsJson": f"{root}/docs-json?model=a%2Fnew"}},
                        {"id": "a/known", "aliases": None, "info": {"docsJson": f"{root}/broken"}},
                        {"id": "a/bare", "aliases": [], "info": {}},
                    ],
                },
                "/docs-json": document("a/new", prompt=PROMPT),
                "/v1/models/deprecations": {
                    "object": "list",
                    "data": [
                        {
                            "id": "a/gone",
                            "aliases": [],
                            "status": "withdrawn",
                            "shutdown_at": "2026-08-10",
                            "replaced_by": "a/new",
                        },
                        {"id": "x", "aliases": ["a/folded"], "status": "superseded", "replaced_by": "a/known"},
                        {"id": "no/such", "aliases": [], "status": "withdrawn", "replaced_by": None},
                    ],
                },
            }
            body = json.dumps(responses[parts.path]).encode() if parts.path in responses else b"<html>"
            self.send_response(200 if parts.path in responses else 500)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
def test_a_live_api_updates_statuses_replacements_and_documents_and_drops_nothing(live, suffix, catalogue, capsys):
    url, seen = live
    entry = {"endpoint": "/v1/images/generations", "fields": {}, "kind": "edit", "required": [], "status": "listed"}
    names = ("a/known", "a/gone", "a/folded", "a/silent")
    catalogue.write_text(json.dumps(dict.fromkeys(names, entry)))
    models, output = run(["--live", url + suffix], catalogue, capsys)
    assert {name: found["status"] for name, found in models.items()} == {
        "a/new": "listed",
        "a/known": "listed",
        "a/gone": "withdrawn",
        "a/folded": "unlisted",
        "a/silent": "unlisted",
    }
    assert models["a/new"]["aliases"] == ["new"]
    assert models["a/new"]["fields"] == {"prompt": {"type": "string", "maxLength": 400}}
    assert {name: found.get("successor") for name, found in models.items() if "successor" in found} == {
        "a/gone": "a/new",
        "a/folded": "a/known",
    }
    assert [name for name, found in models.items() if "ends" in found] == ["a/gone"]
    assert models["a/gone"]["ends"]["date"] == "2026-08-10"
    assert output.splitlines()[:2] == ["5 models", "added 1: a/new"]
    assert seen[0][:2] == ("/v1/models", {"type": ["openai/image-generations"]})
    assert not any("Authorization" in headers for _, _, headers in seen)


def test_the_default_output_is_the_packages_catalogue(monkeypatch, tmp_path, capsys):
    """As ``--help`` promises, although the script writes to another folder than its own."""
    written = []
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: written.append((path.name, path.parent.name)))
    folder = tmp_path
    (folder / "one.json").write_bytes(json.dumps(document("a/one", prompt=PROMPT)).encode())
    assert refresh_catalogue.main([str(folder)]) == 0
    assert written == [("models.json", "catalogue")]
    assert "removed" in capsys.readouterr().out  # the package's entries were read as the previous ones


def test_the_catalogue_is_formatted_as_the_script_writes_it():
    text = resources.files("airflow_provider_imagen.catalogue").joinpath("models.json").read_text(encoding="utf-8")
    assert refresh_catalogue.to_text(json.loads(text)) == text
