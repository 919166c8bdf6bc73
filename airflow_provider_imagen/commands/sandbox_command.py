"""``airflow-imagen sandbox``: run the sandbox as a server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.commands.terminal import Terminal, print_error

if TYPE_CHECKING:
    from airflow_provider_imagen.sandbox import Fault, Sandbox


def add_sandbox(commands: Any) -> None:
    """Add the command to a parser."""
    sandbox = commands.add_parser(
        "sandbox",
        help="run a local server that behaves like the API",
        description="Serve the API's image endpoints on this machine: real HTTP, drawn images, no costs. Open its URL "
        "in a browser to see its images and charges and to inject faults.",
        argument_default=argparse.SUPPRESS,  # the sandbox has its own defaults
    )
    sandbox.add_argument(
        "--host",
        help="address to listen on, which is also in the URLs of images; 0.0.0.0 is all addresses, and then the URLs "
        "contain 127.0.0.1 (default: 127.0.0.1)",
    )
    sandbox.add_argument(
        "--port", type=_number, default=8765, help="port of the API (default: %(default)s; 0: any free port)"
    )
    sandbox.add_argument("--cdn-port", type=_number, help="port of the images (default: any free port)")
    sandbox.add_argument(
        "--latency",
        dest="latency_seconds",
        type=_number,
        metavar="SECONDS",
        help="duration of a generation (default: 0)",
    )
    sandbox.add_argument(
        "--requests-per-minute", type=_number, metavar="N", help="return 429 above this rate (default: no limit)"
    )
    sandbox.add_argument(
        "--counting",
        metavar="{sliding,fixed,bucket}",
        help="algorithm of the rate limit: sliding window, fixed window or token bucket (default: sliding)",
    )
    sandbox.add_argument("--burst", type=_number, metavar="N", help="capacity of the token bucket (default: 1)")
    sandbox.add_argument(
        "--max-concurrent", type=_number, metavar="N", help="return 429 if more are in flight (default: no limit)"
    )
    sandbox.add_argument(
        "--retry-after", dest="tells_retry_after", action="store_true", help="send Retry-After with these 429 responses"
    )
    sandbox.add_argument(
        "--fault",
        dest="faults",
        action="append",
        metavar="KIND[:NAME=VALUE,...]",
        help="inject a fault into the next request, such as reset:billed=true, or into several: "
        "status:status=503,times=3. Repeatable",
    )
    sandbox.add_argument("--list-faults", action="store_true", help="list the kinds of faults and exit")
    sandbox.set_defaults(run=run_sandbox)


def run_sandbox(arguments: argparse.Namespace) -> int:
    """Run the command until it is interrupted; return 2 if an option is invalid or a port cannot be used."""
    from airflow_provider_imagen.sandbox import serve

    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    if options.pop("list_faults", False):
        _list_faults()
        return 0
    try:
        faults = [_read_fault(text) for text in options.pop("faults", ())]
        serve(on_ready=_announce, faults=faults, **options)
    except OSError as error:
        print_error(f"Error: {error.strerror or error}")
        return 2
    except ValueError as error:
        print_error(f"Error: {error}")
        return 2
    return 0


def _number(text: str) -> int | float | str:
    """Return a number, or else the text, which the sandbox rejects with a description of what is allowed."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _read_fault(text: str) -> Fault:
    from airflow_provider_imagen.sandbox.fault_syntax import parse_fault

    try:
        return parse_fault(text)
    except ValueError as error:
        raise ValueError(f"--fault {text!r}: {error}") from None


def _announce(sandbox: Sandbox) -> None:
    Terminal().code(
        f"Sandbox:    {sandbox.url}\n"
        f"Images:     {sandbox.cdn_url}\n"
        f"Connection: {sandbox.connection_line}\n"
        "Open the sandbox in a browser to see images and charges and to inject faults. Press Ctrl-C to stop."
    )


def _list_faults() -> None:
    from airflow_provider_imagen.sandbox.fault_syntax import describe_kinds
    from airflow_provider_imagen.sandbox.faults import COMMON_PARAMETERS

    terminal = Terminal()
    terminal.table(("KIND", "REQUESTS", "EFFECT", "PARAMETERS"), list(describe_kinds()))
    terminal.line(
        f"Every kind also takes {', '.join(COMMON_PARAMETERS)}. "
        "Without times, a fault applies to one request; with times=null, to all."
    )
