"""The commands of ``airflow-imagen`` as ``airflow imagen …``, from Airflow 3.2 on."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

from airflow_provider_imagen.cli import add_commands

if TYPE_CHECKING:
    from collections.abc import Callable

_ADDED_BY_AIRFLOW = ("func", "subcommand")


class _Parser:
    """Records the arguments of one command, to describe the command to Airflow."""

    def __init__(self, *, argument_default: Any = None, **texts: Any) -> None:
        self.texts = texts
        self.arguments: list[Arg] = []
        self.run: Callable[[argparse.Namespace], int]
        self._argument_default = argument_default

    def add_argument(self, *flags: str, **options: Any) -> None:
        if self._argument_default is not None:
            options.setdefault("default", self._argument_default)
        self.arguments.append(Arg(flags, **options))  # type: ignore[no-untyped-call]

    def set_defaults(self, *, run: Callable[[argparse.Namespace], int]) -> None:
        self.run = run


class _Subparsers:
    """Stands in for argparse's object of the same purpose."""

    def __init__(self) -> None:
        self.parsers: dict[str, _Parser] = {}

    def add_parser(self, name: str, **options: Any) -> _Parser:
        self.parsers[name] = _Parser(**options)
        return self.parsers[name]


def get_commands() -> list[GroupCommand]:
    """Return the group ``imagen``; its commands take the same arguments as those of ``airflow-imagen``."""
    subparsers = _Subparsers()
    add_commands(subparsers)
    commands = [
        ActionCommand(name=name, func=partial(_run, parser.run), args=parser.arguments, **parser.texts)
        for name, parser in subparsers.parsers.items()
    ]
    return [GroupCommand(name="imagen", help="Generate images through the AI/ML API", subcommands=commands)]


def _run(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> None:
    """
    Run a command and exit with its status, which Airflow would ignore.

    Only what the command prints reaches stdout; Airflow's log handlers, which hold that stream, write to stderr.
    """
    given = {name: value for name, value in vars(arguments).items() if name not in _ADDED_BY_AIRFLOW}
    sys.stdout.flush()
    with open(os.dup(1), "w", encoding=sys.stdout.encoding) as stdout, redirect_stdout(stdout):
        os.dup2(2, 1)
        try:
            status = run(argparse.Namespace(**given))
        except KeyboardInterrupt:
            status = 130
    sys.exit(status)
