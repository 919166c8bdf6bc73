"""The ``airflow-imagen`` command: demo, sandbox, models, check, bill, examples, reconcile, replay and whois."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen import __version__
from airflow_provider_imagen.commands.bill_command import add_bill
from airflow_provider_imagen.commands.check_command import add_check
from airflow_provider_imagen.commands.examples_command import add_examples
from airflow_provider_imagen.commands.models_command import add_models
from airflow_provider_imagen.commands.reconcile_command import add_reconcile
from airflow_provider_imagen.commands.replay_command import add_replay
from airflow_provider_imagen.commands.sandbox_command import add_sandbox
from airflow_provider_imagen.commands.whois_command import add_whois

if TYPE_CHECKING:
    from collections.abc import Sequence

_BYTE_ORDER_MARK = "\ufeff"


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command and return its exit status, 0 on success.

    :param argv: arguments without the program name; default: ``sys.argv[1:]``
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="airflow-imagen", description="Generate images in Apache Airflow through the AI/ML API."
    )
    parser.add_argument("--version", action="version", version=f"airflow-provider-imagen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands)
    add_commands(commands)
    return parser


def add_commands(commands: Any) -> None:
    """
    Add every command but ``demo``, which must run before Airflow is imported.

    :param commands: argparse's object for subparsers, or one with the same ``add_parser``
    """
    add_sandbox(commands)
    add_models(commands)
    add_check(commands)
    add_bill(commands)
    add_examples(commands)
    add_reconcile(commands)
    add_replay(commands)
    add_whois(commands)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="generate images with the example DAG",
        description="Run the example DAG imagen_quickstart in a temporary Airflow against the built-in sandbox, "
        "without an API key or costs. If AIRFLOW_CONN_IMAGEN_DEFAULT holds a connection, its API is used instead.",
    )
    demo.add_argument("prompts", nargs="*", metavar="PROMPT", help="one or more prompts")
    demo.add_argument(
        "--prompts-file", type=Path, metavar="FILE", help="file of further prompts, one per line; - is standard input"
    )
    demo.add_argument("--num-images", type=int, default=1, metavar="N", help="images per prompt (default: 1)")
    demo.add_argument("--aspect-ratio", default="1:1", metavar="W:H", help="default: 1:1")
    demo.add_argument("--seed", type=int, metavar="N", help="seed for reproducible images, if the model supports it")
    demo.add_argument("--model", default="imagen-3.0-generate-002", metavar="ID", help="default: %(default)s")
    demo.add_argument("--output", default="imagen-demo", metavar="FOLDER", help="default: ./%(default)s")
    demo.add_argument("--ui", action="store_true", help="then show the images in the Airflow UI, until Ctrl-C")
    demo.add_argument("--verbose", action="store_true", help="show Airflow's log")
    demo.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    prompts = [*arguments.prompts]
    if arguments.prompts_file is not None:
        try:
            prompts += _read_prompts(arguments.prompts_file)
        except (OSError, UnicodeDecodeError) as error:
            print(f"Error: --prompts-file {arguments.prompts_file}: {error}", file=sys.stderr)
            return 2
    if not prompts:
        print('Error: no prompt. Try: airflow-imagen demo "A raccoon eating ice-cream"', file=sys.stderr)
        return 2
    from airflow_provider_imagen.demo import run_demo

    return run_demo(
        prompts=prompts,
        num_images=arguments.num_images,
        aspect_ratio=arguments.aspect_ratio,
        seed=arguments.seed,
        model=arguments.model,
        output=arguments.output,
        ui=arguments.ui,
        verbose=arguments.verbose,
    )


def _read_prompts(path: Path) -> list[str]:
    """Return the prompts in a file, one per line, in UTF-8, UTF-16 or UTF-32 with or without byte order mark."""
    data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    lines = data.decode(json.detect_encoding(data)).splitlines()
    prompts = (line.removeprefix(_BYTE_ORDER_MARK).strip() for line in lines)  # concatenated files have one per file
    return [prompt for prompt in prompts if prompt]


if __name__ == "__main__":
    sys.exit(main())
