"""``airflow-imagen models``: list models, or show the fields of one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from airflow_provider_imagen.catalogue.availability import ModelState, judge_models
from airflow_provider_imagen.catalogue.lookup import Kind, Model, Status, all_models, find_model, nearest_models
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.commands.model_description import dag_snippet, describe_fields, describe_model
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json
from airflow_provider_imagen.exceptions import ImagenError
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from airflow_provider_imagen.catalogue.availability import ModelHealth

_STATUSES = (*dict.fromkeys((*get_args(Status), *get_args(ModelState))),)


def add_models(commands: Any) -> None:
    """Add the command to a parser."""
    models = commands.add_parser(
        "models",
        help="list the image models, or show one of them",
        description="List all image models or those that match some words, or show one model with its fields, limits, "
        "price and an example DAG. Works offline unless --live is given.",
    )
    models.add_argument("words", nargs="*", metavar="WORD", help="a model id, or parts of one")
    models.add_argument("--kind", choices=get_args(Kind), help="only models of this kind")
    models.add_argument("--status", choices=_STATUSES, help="only models with this status")
    models.add_argument("--max-usd", type=float, metavar="USD", help="only models with at most this price per image")
    models.add_argument("--live", action="store_true", help="get current models and prices from the API; needs no key")
    models.add_argument("--url", default=None, metavar="URL", help="base URL of the API for --live")
    models.add_argument("--json", action="store_true", help="write JSON")
    models.set_defaults(run=run_models)


def run_models(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if a model was found, 1 if none was, 2 if the API request failed."""
    prices = PriceList()
    health: dict[str, ModelHealth] = {}
    if arguments.live:
        try:
            prices, health = _query_api(arguments.url)
        except (ImagenError, ValueError) as error:
            print_error(f"Error: {error}")
            return 2
    model = find_model(arguments.words[0]) if len(arguments.words) == 1 else None
    if model is not None:
        _show_one(model, describe_model(model, prices=prices, health=health.get(model.id)), as_json=arguments.json)
        return 0
    rows = [describe_model(model, prices=prices, health=health.get(model.id)) for model in all_models()]
    known = {name for model in all_models() for name in (model.id, *model.aliases)}
    rows += [_describe_uncatalogued(name, state) for name, state in health.items() if name not in known]
    rows = [row for row in rows if _matches(row, arguments)]
    if arguments.json:
        print_json(rows)
        return 0 if rows else 1
    if not rows:
        near = nearest_models(" ".join(arguments.words)) if arguments.words else []
        hint = f" Similar: {', '.join(near)}." if near else ""
        print_error(f"No model matches.{hint}")
        return 1
    _show_list(rows, live=arguments.live)
    return 0


def _query_api(url: str | None) -> tuple[PriceList, dict[str, ModelHealth]]:
    """Return the API's prices, and the availability of all models by id."""
    from airflow_provider_imagen.api.client import ApiClient, ClientSettings

    client = ApiClient(ClientSettings(base_url=url) if url else ClientSettings())
    try:
        listed = client.list_models(include_pricing=True)
        retired = client.list_deprecations()
    finally:
        client.close()
    live = [str(row.get("id")) for row in listed]
    names = dict.fromkeys([*(model.id for model in all_models()), *live])
    return PriceList.from_response(listed), {
        state.model: state for state in judge_models(names, listed=listed, retired=retired)
    }


def _matches(row: Mapping[str, Any], arguments: argparse.Namespace) -> bool:
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


def _describe_uncatalogued(name: str, state: ModelHealth) -> dict[str, Any]:
    """Return the row of a model that is not in the catalogue; it can be used, but its arguments are not validated."""
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
    terminal = Terminal()
    terminal.table(
        ("Model", "Kind", "Status", "Price", "Images", "Inputs", "Prompt"),
        [
            (
                row["id"],
                _kind(row["kind"]),
                _status(row),
                _usd(row["usd_per_image"]),
                _limit(row["max_images_per_request"], row["kind"]),
                _inputs(row),
                _limit(row["max_prompt_characters"], row["kind"]),
            )
            for row in rows
        ],
        right=("Price", "Images", "Prompt"),
    )
    count = f"{len(rows)} model{'s' if len(rows) != 1 else ''}"
    price = "current price of an image, else the last known one" if live else "last known price of an image"
    terminal.line(f"{count}. Price: {price}. Images: maximum per request. Prompt: maximum characters.")
    hint = "" if live else " --live queries the API."
    terminal.line(f"airflow-imagen models MODEL shows the details of a model.{hint}")


def _show_one(model: Model, properties: dict[str, Any], *, as_json: bool) -> None:
    fields = describe_fields(model.generations)
    edits = describe_fields(model.edits) if model.edits else None
    if as_json:
        print_json({**properties, "fields": fields, "edit_fields": edits, "dag": dag_snippet(model)})
        return
    terminal = Terminal()
    terminal.heading(model.id)
    price = _usd(properties["usd_per_image"])
    cost = f"{price} per image ({properties['usd_source']})" if price else "price unknown"
    terminal.line(f"{_kind(model.kind).capitalize()}, {_status(properties)}, {cost}.")
    if model.aliases:
        terminal.line(f"Aliases: {', '.join(model.aliases)}.")
    terminal.line(
        f"Images per request: {_limit(properties['max_images_per_request'], model.kind)}. {_input_sentence(properties)}"
    )
    _show_fields(terminal, f"POST {model.generations.path}", fields)
    if model.edits and edits:
        _show_fields(terminal, f"POST {model.edits.path}, with input_images", edits)
    terminal.line("")
    terminal.code(dag_snippet(model))


def _show_fields(terminal: Terminal, title: str, fields: list[dict[str, Any]]) -> None:
    terminal.line("")
    terminal.line(title)
    terminal.table(
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
    terminal.line("* required. Argument: the argument of ImagenGenerateOperator that sets the field.")


def _kind(kind: str | None) -> str:
    return kind.replace("_", " ") if kind else "?"


def _status(row: Mapping[str, Any]) -> str:
    date = f" {row['shutdown_at']}" if row["shutdown_at"] else ""
    successor = f" → {row['successor']}" if row["successor"] else ""
    return f"{row['status']}{date}{successor}"


def _usd(usd: float | None) -> str:
    return "" if usd is None else format_usd(usd)


def _limit(number: int | None, kind: str | None) -> str:
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
    return f"Input images: {text}." if text else "No input images."
