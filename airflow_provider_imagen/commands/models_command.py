"""``airflow-imagen models``: find models, and show the fields of one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.catalogue.lookup import Model, all_models, find_model, nearest_models
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.commands.model_description import dag_snippet, field_facts, model_facts
from airflow_provider_imagen.commands.terminal import Screen, complain, write_json
from airflow_provider_imagen.exceptions import ImagenError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from airflow_provider_imagen.catalogue.availability import ModelHealth

KINDS = ("text_to_image", "edit", "image_to_image", "upscale")
STATUSES = ("listed", "unlisted", "alive", "superseded", "deprecated", "withdrawn", "unknown")


def add_models(commands: Any) -> None:
    """Add the command to a parser."""
    models = commands.add_parser(
        "models",
        help="list the image models, or show one of them",
        description="List the image models, those that match some words, or show one: its fields, limits, price, and a "
        "DAG that uses it. Nothing is sent unless --live is given.",
    )
    models.add_argument("words", nargs="*", metavar="WORD", help="id of a model, or words that its id contains")
    models.add_argument("--kind", choices=KINDS, help="only models of this kind")
    models.add_argument("--status", choices=STATUSES, help="only models in this state")
    models.add_argument("--max-usd", type=float, metavar="USD", help="only models whose picture costs at most this")
    models.add_argument(
        "--live", action="store_true", help="ask the API what it serves now, and at which price; no key"
    )
    models.add_argument("--url", default=None, metavar="URL", help="base URL of the API for --live")
    models.add_argument("--json", action="store_true", help="write JSON")
    models.set_defaults(run=run_models)


def run_models(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if a model was found, 1 if none was, 2 if the API request failed."""
    prices = PriceList()
    health: dict[str, ModelHealth] = {}
    if arguments.live:
        try:
            prices, health = _ask(arguments.url)
        except (ImagenError, ValueError) as error:
            complain(f"Error: {error}")
            return 2
    one = find_model(arguments.words[0]) if len(arguments.words) == 1 else None
    if one is not None:
        _show_one(one, model_facts(one, prices=prices, health=health.get(one.id)), as_json=arguments.json)
        return 0
    rows = [model_facts(model, prices=prices, health=health.get(model.id)) for model in all_models()]
    known = {name for model in all_models() for name in (model.id, *model.aliases)}
    rows += [_unknown_facts(name, state) for name, state in health.items() if name not in known]
    rows = [row for row in rows if _is_wanted(row, arguments)]
    if arguments.json:
        write_json(rows)
        return 0 if rows else 1
    if not rows:
        near = nearest_models(" ".join(arguments.words)) if arguments.words else []
        hint = f" Similar: {', '.join(near)}." if near else ""
        complain(f"No model matches.{hint}")
        return 1
    _show_list(rows, live=arguments.live)
    return 0


def _ask(url: str | None) -> tuple[PriceList, dict[str, ModelHealth]]:
    """Return the API's prices, and the health of all known models by id; needs no key."""
    from airflow_provider_imagen.api.client import ApiClient, ClientSettings
    from airflow_provider_imagen.catalogue.availability import judge_models

    client = ApiClient(ClientSettings(base_url=url) if url else ClientSettings())
    try:
        listed = client.list_models(include_pricing=True)
        retired = client.list_deprecations()
    finally:
        client.close()
    live = [str(row.get("id")) for row in listed]
    names = dict.fromkeys([*(model.id for model in all_models()), *live])
    return PriceList.from_answer(listed), {
        state.model: state for state in judge_models(names, listed=listed, retired=retired)
    }


def _is_wanted(row: Mapping[str, Any], arguments: argparse.Namespace) -> bool:
    names = " ".join([row["id"], *row["aliases"]]).lower()
    return (
        all(word.lower() in names for word in arguments.words)
        and arguments.kind in (None, row["kind"])
        and arguments.status in (None, row["status"])
        and (
            arguments.max_usd is None
            or (row["usd_per_image"] is not None and row["usd_per_image"] <= arguments.max_usd)
        )
    )


def _unknown_facts(name: str, state: ModelHealth) -> dict[str, Any]:
    """Return the row of a model that the API serves but the catalogue lacks; it can be used, but is not validated."""
    return {
        "id": name,
        "aliases": [],
        "kind": None,
        "status": state.state,
        "shutdown_at": state.shutdown_at,
        "successor": state.successor,
        "usd_per_image": None,
        "usd_source": "unknown",
        "max_images_per_request": None,
        "max_prompt_characters": None,
        "max_input_images": None,
        "needs_input_images": None,
    }


def _show_list(rows: list[dict[str, Any]], *, live: bool) -> None:
    screen = Screen()
    screen.table(
        ("Model", "Kind", "Status", "USD", "Images", "Inputs", "Prompt"),
        [
            (
                row["id"],
                _words(row["kind"]),
                _status(row),
                _usd(row["usd_per_image"]),
                _most(row["max_images_per_request"], row["kind"]),
                _inputs(row),
                _most(row["max_prompt_characters"], row["kind"]),
            )
            for row in rows
        ],
        right=("USD", "Images", "Prompt"),
    )
    source = "USD: price of a picture as the API names it now, else last known." if live else "USD: last known price."
    screen.line(
        f"{len(rows)} model{'s' if len(rows) != 1 else ''}. {source} Images: most per request. Prompt: most characters."
    )
    screen.line("airflow-imagen models MODEL shows one of them." + ("" if live else " --live asks the API."))


def _show_one(model: Model, facts: dict[str, Any], *, as_json: bool) -> None:
    fields = field_facts(model.generations)
    edits = field_facts(model.edits) if model.edits else None
    if as_json:
        write_json({**facts, "fields": fields, "edit_fields": edits, "dag": dag_snippet(model)})
        return
    screen = Screen()
    screen.heading(model.id)
    price = _usd(facts["usd_per_image"])
    cost = f"{price} USD a picture ({facts['usd_source']})" if price else "price not known"
    screen.line(f"{_words(model.kind).capitalize()}, {_status(facts)}, {cost}.")
    if model.aliases:
        screen.line(f"Also called {', '.join(model.aliases)}.")
    screen.line(f"Pictures per request: {_most(facts['max_images_per_request'], model.kind)}. {_input_sentence(facts)}")
    _show_fields(screen, f"POST {model.generations.path}", fields)
    if model.edits and edits:
        _show_fields(screen, f"POST {model.edits.path}, with input_images", edits)
    screen.line("")
    screen.code(dag_snippet(model))


def _show_fields(screen: Screen, title: str, fields: list[dict[str, Any]]) -> None:
    screen.line("")
    screen.line(title)
    screen.table(
        ("Field", "Allowed", "Default", "Argument"),
        [
            (
                f"{field['field']} *" if field["required"] else field["field"],
                field["allowed"],
                "" if field["default"] is None else json.dumps(field["default"], ensure_ascii=False),
                field["argument"],
            )
            for field in fields
        ],
    )
    screen.line("* is needed. Argument: where ImagenGenerateOperator takes it.")


def _words(kind: str | None) -> str:
    return kind.replace("_", " ") if kind else "?"


def _status(row: Mapping[str, Any]) -> str:
    date = f" {row['shutdown_at']}" if row["shutdown_at"] else ""
    successor = f" → {row['successor']}" if row["successor"] else ""
    return f"{row['status']}{date}{successor}"


def _usd(usd: float | None) -> str:
    return "" if usd is None else f"{usd:.4f}"


def _most(number: int | None, kind: str | None) -> str:
    return str(number) if number is not None else "?" if kind is None else "no limit"


def _inputs(row: Mapping[str, Any]) -> str:
    if row["kind"] is None:
        return "?"
    most = row["max_input_images"]
    if most == 0:
        return ""
    if row["needs_input_images"]:
        return "1 or more" if most is None else "1" if most == 1 else f"1 to {most}"
    return "any" if most is None else f"up to {most}"


def _input_sentence(row: Mapping[str, Any]) -> str:
    text = _inputs(row)
    return f"Input pictures: {text}." if text else "Takes no input pictures."
