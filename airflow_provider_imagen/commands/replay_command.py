"""``airflow-imagen replay``: quote the prompts of a manifest on other models, and generate a sample of them."""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.bill import add_costs
from airflow_provider_imagen.catalogue.availability import judge_models_offline
from airflow_provider_imagen.catalogue.lookup import find_model, nearest_models
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.commands.airflow_environment import as_airflow_command
from airflow_provider_imagen.commands.past_requests import read_past_requests
from airflow_provider_imagen.commands.replay_quote import FittedRequest, lay_out_sample, quote_model
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json, printable
from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.redaction import scrub
from airflow_provider_imagen.storage.atomic_write import read_bytes, redacted_address
from airflow_provider_imagen.storage.paths import MANIFEST_NAME

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from decimal import Decimal

    from airflow_provider_imagen.catalogue.lookup import Model
    from airflow_provider_imagen.commands.past_requests import PastRequest
    from airflow_provider_imagen.commands.replay_quote import ModelQuote, SampleRow
    from airflow_provider_imagen.storage.paths import StoragePath

_REASONS_SHOWN: Final = 5
_ERROR_CHARACTERS: Final = 600
_LABEL_CHARACTERS: Final = 60


class _Quotes(Struct, frozen=True):
    """
    The past requests, and what they would cost.

    :param folder: the folder of the manifest
    :param requests: everything in the manifest
    :param models: their cost on each model
    :param sample: the images to generate with ``--buy``
    :param notes: what else people should know, in sentences
    """

    folder: StoragePath
    requests: Sequence[PastRequest]
    models: Sequence[ModelQuote]
    sample: Sequence[SampleRow]
    notes: Sequence[str]

    @property
    def sample_requests(self) -> dict[str, FittedRequest]:
        """The requests of the sample, by the names of their images."""
        cells = [cell for row in self.sample for cell in row.cells]
        return {cell.name: cell.fit for cell in cells if isinstance(cell.fit, FittedRequest)}


def add_replay(commands: Any) -> None:
    """Add the command to a parser."""
    replay = commands.add_parser(
        "replay",
        help="quote the prompts of a manifest on other models, and generate a sample",
        description="Quote the prompts of a manifest on other models. Each distinct prompt counts once, with its "
        "shape, number of images and other fields, but without its seed, which means nothing to another model. With "
        "--buy, generate a sample: one image per prompt and model, for the first prompts. The images and a page that "
        "compares them are stored in a folder; the same command with the same folder pays only for what is missing. "
        "The exit status is 0 on success, 1 if no model takes any of the prompts or an image of the sample is missing, "
        "2 if an argument, the manifest or the connection is unusable, and 130 after Ctrl-C.",
    )
    replay.add_argument("manifest", metavar="MANIFEST", help="metadata.jsonl, or its folder (ObjectStoragePath)")
    replay.add_argument(
        "--model", dest="models", action="append", required=True, metavar="ID", help="a model to quote; repeatable"
    )
    replay.add_argument("--buy", action="store_true", help="generate a sample, which costs money")
    replay.add_argument(
        "--sample", type=int, default=3, metavar="N", help="number of prompts in the sample (default: %(default)s)"
    )
    replay.add_argument(
        "--output",
        default="imagen-replay",
        metavar="FOLDER",
        help="folder for the sample (ObjectStoragePath; default: ./%(default)s)",
    )
    replay.add_argument(
        "--max-usd", type=float, metavar="USD", help="cap on what all samples in the folder cost together"
    )
    replay.add_argument("--imagen-conn-id", default="imagen_default", metavar="ID", help="default: %(default)s")
    replay.add_argument("--json", action="store_true", help="write JSON")
    replay.set_defaults(run=run_replay)


def run_replay(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 on success, 1 if something is missing, 2 on errors, 130 after Ctrl-C."""
    try:
        models = _find_models(arguments.models)
        if arguments.sample < 1:
            raise ValueError(f"--sample {arguments.sample}: a whole number of at least 1 is allowed")
        if arguments.max_usd is not None and not 0 < arguments.max_usd < math.inf:
            raise ValueError(f"--max-usd {arguments.max_usd}: a number of USD above 0 is allowed")
        with as_airflow_command():
            quotes = _quote(arguments, models)
            if arguments.buy:
                open_folder(arguments.output, field="--output")  # an unusable one is reported before the quote
    except (StorageError, ValueError) as error:
        print_error(f"Error: {printable(str(error), _ERROR_CHARACTERS)}")
        return 2
    report: dict[str, Any] = {"quote": _quotes_to_json(quotes)}
    if not arguments.json:
        _show_quotes(quotes)
    status = 0 if quotes.sample else 1
    if arguments.buy and quotes.sample:
        status, report["sample"] = _buy(quotes, arguments)
    if arguments.json:
        print_json(report)
    return status


def _find_models(names: Sequence[str]) -> list[Model]:
    models: dict[str, Model] = {}
    for name in names:
        model = find_model(name)
        if model is None:
            near = nearest_models(name)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"--model {name}: it is not in the catalogue{hint}")
        models[model.id] = model
    return list(models.values())


def _quote(arguments: argparse.Namespace, models: Sequence[Model]) -> _Quotes:
    path = open_folder(arguments.manifest, field="MANIFEST")
    folder, name = (path.parent, path.name) if path.name.endswith(".jsonl") else (path, MANIFEST_NAME)
    requests = read_past_requests(folder, name=name)
    if not requests:
        manifest = folder.joinpath(name)
        if read_bytes(manifest, within=folder) is None:
            raise ValueError(f"there is no manifest at {redacted_address(manifest)}")
        raise ValueError(f"{redacted_address(manifest)} lists no image with a prompt")
    prices, notes = _live_prices(arguments.imagen_conn_id)
    quotes = [quote_model(model, requests, prices=prices) for model in models]
    sample = lay_out_sample(models, requests, prices=prices, prompts=arguments.sample)
    if unknown := sum(not past.has_known_fields for past in requests):
        notes.append(
            f"{unknown} of {len(requests)} prompts: some of their fields are unknown and left out, because the images "
            "have no metadata, or it does not hold these fields in full."
        )
    for state in judge_models_offline([model.id for model in models], today=datetime.now(UTC).date()):
        if state.warning or not state.is_fine:
            notes.append(f"{state.model}: {state.warning or state.sentence}.")
    return _Quotes(folder, requests, quotes, sample, notes)


def _live_prices(imagen_conn_id: str) -> tuple[PriceList, list[str]]:
    """Return the API's prices, or none and the reason."""
    from airflow_provider_imagen.hooks.imagen import ImagenHook

    hook = ImagenHook(imagen_conn_id)
    try:
        return PriceList.from_response(hook.list_models(include_pricing=True)), []
    except Exception as error:  # such as a missing connection, or no access to Airflow's database
        reason = scrub(str(error))
        return PriceList(), [f"The prices are the last known ones, because the API's could not be read: {reason}"]
    finally:
        hook.close()


# --- the sample -------------------------------------------------------------------------------------------------------


def _buy(quotes: _Quotes, arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Generate the sample and write the page; return the exit status, and the outcome as JSON values."""
    from airflow_provider_imagen.commands.replay_sample import TASK, generate_sample
    from airflow_provider_imagen.commands.replay_sheet import write_sheet

    terminal = None if arguments.json else Terminal()
    requests = quotes.sample_requests
    if terminal is not None:
        cost = _usd(add_costs(fitted.usd for fitted in requests.values()))
        terminal.line(
            f"Sample: {_count(len(requests), 'image')} for {cost}, one image per prompt and model, for the first "
            f"{_count(len(quotes.sample), 'prompt')}. What {arguments.output} has already is not paid for again."
        )
    with as_airflow_command(), _progress():
        result, error = generate_sample(
            requests, output=arguments.output, max_usd=arguments.max_usd, imagen_conn_id=arguments.imagen_conn_id
        )
        sheet = None
        if result is not None:
            try:
                folder = open_folder(arguments.output)
                sheet = write_sheet(
                    folder, past_folder=quotes.folder, sample=quotes.sample, result=result, owner=TASK.identity
                )
            except StorageError as failure:
                error = error or failure
    if isinstance(error, KeyboardInterrupt):
        print_error("Interrupted. What was paid for is kept; the same command continues.")
    elif error is not None:
        print_error(f"Error: {printable(str(error) or type(error).__name__, _ERROR_CHARACTERS)}")
    if result is None:
        return 130 if isinstance(error, KeyboardInterrupt) else 2, {}
    summary = replace(result.summary(), output_path=arguments.output)
    failures = [
        {"name": failure.item.name, "problem": printable(str(failure.error), _ERROR_CHARACTERS)}
        for failure in result.failures
    ]
    if terminal is not None:
        for failed in failures:
            terminal.line(f"{failed['name']}: {failed['problem']}")
        terminal.line(f"{summary.totals} in {arguments.output} so far.")
        terminal.line(f"Page: {sheet}")
    status = 130 if isinstance(error, KeyboardInterrupt) else 1 if error is not None or summary.problems else 0
    return status, {**summary.to_json(), "failures": failures, "page": sheet}


@contextmanager
def _progress() -> Iterator[None]:
    """Show each image and every warning of this package on stderr."""
    package, progress = (logging.getLogger(f"airflow_provider_imagen{name}") for name in ("", ".progress"))
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    levels = package.level, progress.level
    package.addHandler(handler)
    package.setLevel(logging.WARNING)
    progress.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(levels[0])
        progress.setLevel(levels[1])


# --- showing the quote ------------------------------------------------------------------------------------------------


def _show_quotes(quotes: _Quotes) -> None:
    terminal = Terminal()
    bought = add_costs(past.usd for past in quotes.requests)
    images = sum(past.images for past in quotes.requests)
    prompts = len(quotes.requests)
    terminal.table(
        ("Model", "Prompts", "Rejected", "Images", "Price", "Total"),
        [
            ("as bought", str(prompts), "", str(images), _per_image(bought, images), _usd(bought)),
            *(
                (
                    quote.model,
                    str(len(quote.fitted)),
                    str(len(quote.rejected) or ""),
                    str(quote.images),
                    _per_image(quote.usd, quote.images),
                    _usd(quote.usd) if quote.fitted else "",
                )
                for quote in quotes.models
            ),
        ],
        right=("Prompts", "Rejected", "Images", "Price", "Total"),
    )
    for quote in quotes.models:
        if quote.left_out:
            fields = ", ".join(f"{name} ({_count(count, 'prompt')})" for name, count in sorted(quote.left_out.items()))
            terminal.line(f"{quote.model} does not take these fields or values, which are left out: {fields}.")
        by_reason: dict[str, list[str]] = {}
        for rejected in quote.rejected:
            by_reason.setdefault(rejected.reason, []).append(printable(rejected.past.prompt, _LABEL_CHARACTERS))
        for reason, (first, *others) in list(by_reason.items())[:_REASONS_SHOWN]:
            more = f" and {len(others)} more" if others else ""
            terminal.line(f"{quote.model} rejects {first!r}{more}: {printable(reason, _ERROR_CHARACTERS)}.")
        if len(by_reason) > _REASONS_SHOWN:
            terminal.line(
                f"{quote.model} rejects others for {len(by_reason) - _REASONS_SHOWN} more reasons; see --json."
            )
    for note in quotes.notes:
        terminal.line(printable(note, _ERROR_CHARACTERS))


def _quotes_to_json(quotes: _Quotes) -> dict[str, Any]:
    bought = add_costs(past.usd for past in quotes.requests)
    return {
        "prompts": len(quotes.requests),
        "images": sum(past.images for past in quotes.requests),
        "usd": None if bought is None else float(bought),
        "models": [
            {
                "model": quote.model,
                "prompts": len(quote.fitted),
                "images": quote.images,
                "usd": None if quote.usd is None else float(quote.usd),
                "usd_source": quote.source,
                "left_out": quote.left_out,
                "rejected": [{"prompt": each.past.prompt, "reason": each.reason} for each in quote.rejected],
            }
            for quote in quotes.models
        ],
        "notes": quotes.notes,
    }


def _usd(usd: Decimal | None) -> str:
    return "unknown" if usd is None else format_usd(usd)


def _per_image(usd: Decimal | None, images: int) -> str:
    return _usd(usd / images) if usd is not None and images else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
