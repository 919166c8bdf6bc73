"""``airflow-imagen examples``: list the example DAGs, or print one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.commands.terminal import Terminal, print_error
from airflow_provider_imagen.examples import find_examples

if TYPE_CHECKING:
    import argparse


def add_examples(commands: Any) -> None:
    """Add the command to a parser."""
    examples = commands.add_parser(
        "examples",
        help="list the example DAGs, or print one",
        description="List the example DAGs, or print one of them, for example into your DAG folder: "
        "airflow-imagen examples imagen_batch > dags/imagen_batch.py",
    )
    examples.add_argument("name", nargs="?", metavar="NAME", help="name of an example")
    examples.set_defaults(run=run_examples)


def run_examples(arguments: argparse.Namespace) -> int:
    """Run the command; return 0, or 2 if there is no such example. Files that an example reads are named on stderr."""
    examples = find_examples()
    if arguments.name is None:
        terminal = Terminal()
        terminal.table(["Example", "Shows"], [[example.name, example.title] for example in examples.values()])
        for folder in {example.path.parent for example in examples.values()}:
            terminal.line(f"They are in {folder}, with the files that some of them read.")
        return 0
    example = examples.get(arguments.name.removesuffix(".py"))
    if example is None:
        names = ", ".join(examples) or "missing from this installation"
        print_error(f"Error: there is no example {arguments.name!r}. The examples are {names}.")
        return 2
    sys.stdout.write(example.path.read_text(encoding="utf-8"))
    if files := example.other_files:
        print_error(f"It reads {' and '.join(files)}: copy that from {example.path.parent} into the folder of the DAG.")
    return 0
