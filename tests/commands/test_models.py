from __future__ import annotations

import ast
import json

import pytest

from airflow_provider_imagen.catalogue.lookup import all_models
from airflow_provider_imagen.cli import main
from airflow_provider_imagen.commands.model_description import dag_snippet, example_arguments
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.sandbox import Fault

OURS = ("task_id", "output_path", "parameters")


@pytest.fixture
def run(capsys):
    def run(*argv):
        status = main(["models", *argv])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_the_list_has_every_model(run):
    status, out, _ = run()
    assert status == 0
    assert all(model.id in out for model in all_models())
    assert f"{len(all_models())} models" in out


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["flux", "KONTEXT-max"], {"flux/kontext-max/image-to-image", "flux/kontext-max/text-to-image"}),
        (["--kind", "upscale", "topaz"], {"topaz-labs/sharpen", "topaz-labs/sharpen-gen"}),
        (["--status", "unlisted"], {"blackforestlabs/flux-2-max"}),
        (["--max-usd", "0.004"], {"flux/schnell"}),
    ],
)
def test_a_search_keeps_matching_models(run, argv, found):
    status, out, _ = run(*argv, "--json")
    assert status == 0
    assert {row["id"] for row in json.loads(out)} == found


def test_a_search_without_results_suggests_similar_models(run):
    status, out, err = run("flux/schnel1")
    assert (status, out) == (1, "")
    assert "flux/schnell" in err
    assert run("flux/schnel1", "--json")[:2] == (1, "[]\n")


def test_one_model_is_shown_with_fields_limits_price_and_a_dag(run):
    status, out, _ = run("flux/schnell")
    assert status == 0
    for text in (
        "$0.004 per image",
        "image_size",
        "multiple of 32",
        "a number from 1 to 4",
        'model="flux/schnell"',
    ):
        assert text in out
    facts = json.loads(run("flux/schnell", "--json")[1])
    assert facts["usd_per_image"] == 0.004
    assert {field["field"]: field["argument"] for field in facts["fields"]}["num_images"] == "num_images"
    ast.parse(facts["dag"])


def test_an_alias_shows_its_model_and_the_second_endpoint_is_shown_too(run):
    model = next(model for model in all_models() if model.aliases)
    assert model.id in run(model.aliases[0])[1]
    out = run("openai/gpt-image-1")[1]
    assert "/v1/images/edits" in out
    assert "mask" in out


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.id)
def test_the_dag_of_every_model_is_one_it_accepts(model):
    (call,) = [
        node
        for node in ast.walk(ast.parse(dag_snippet(model)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ImagenGenerateOperator"
    ]
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert arguments == example_arguments(model)
    fields = {
        **{name: value for name, value in arguments.items() if name not in OURS},
        **arguments.get("parameters", {}),
    }
    plan = make_plan(prompt=fields.pop("prompt", None), arguments=fields, can_store=True)
    assert plan.images == 1


def test_live_gets_status_and_prices_without_a_key(run, sandbox):
    sandbox.add_fault(Fault("withdrawn", model="flux/dev", replaced_by="flux/schnell", times=None))
    rows = {row["id"]: row for row in json.loads(run("--live", "--url", sandbox.url, "--json")[1])}
    assert (rows["flux/dev"]["status"], rows["flux/dev"]["successor"]) == ("withdrawn", "flux/schnell")
    assert rows["flux/schnell"]["status"] == "alive"
    assert rows["flux/schnell"]["usd_source"] == "live"
    assert all("authorization" not in request.headers for request in sandbox.seen())


def test_prices_by_quality_are_those_of_the_default_quality(run, sandbox):
    facts = json.loads(run("openai/gpt-image-2", "--live", "--url", sandbox.url, "--json")[1])
    assert (facts["usd_per_image"], facts["usd_source"]) == (0.054, "live")


def test_an_unreachable_api_is_reported(run):
    status, out, err = run("--live", "--url", "http://127.0.0.1:9")
    assert (status, out) == (2, "")
    assert "connection refused" in err
