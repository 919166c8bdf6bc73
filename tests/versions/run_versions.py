"""
Run the suite on several versions of Airflow and Python, two at a time, and print one table of results.

Started by ``set-up.sh`` with the Python of an environment in which the project is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
UV = (sys.executable, "-m", "uv")
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
MEETS_AIRFLOW = (
    "tests/operators",
    "tests/decorators",
    "tests/hooks",
    "tests/links",
    "tests/notifications",
    "tests/commands/test_airflow_commands.py",
    "tests/test_example_dags.py",
    "tests/test_provider.py",
    "tests/test_testing.py",
)
"""What differs between Airflow's versions."""

MEETS_PYTHON = (
    *("-m", "not slow"),
    *MEETS_AIRFLOW,
    "tests/api",
    "tests/catalogue",
    "tests/download",
    "tests/run",
    "tests/test_redaction.py",
    "tests/test_signed_urls.py",
    "tests/rate_limit/test_pacer.py",  # not the controller, which is minutes of plain arithmetic
    "tests/storage",
)
"""What differs between Python's versions; the rest are servers, processes and screens that both leave alone."""

TOOLS = (
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.130",
    "pyarrow>=18",
    "aiosmtpd>=1.4.6",
)
_print_lock = threading.Lock()


@dataclass(frozen=True)
class Combination:
    """
    One Airflow on one Python.

    :param python: the interpreter
    :param python_version: such as ``3.12``
    :param airflow: version; ``None`` is the newest
    :param day: install the dependencies as published on this day, because an older Airflow does not run with later ones
    :param tests: pytest arguments that select the tests
    """

    python: str
    python_version: str
    airflow: str | None
    day: str | None
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"airflow-{self.airflow or 'newest'}-python-{self.python_version}"


@dataclass
class Outcome:
    airflow: str
    python: str
    passed: str = ""
    failed: str = ""
    seconds: str = ""
    fine: bool = False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = {version: find_python(version) for version in PYTHONS if version != here}
    found = {version: python for version, python in others.items() if python}
    # Not on a newer Python, which the oldest releases of the dependencies do not support.
    oldest = min({here, *found}, key=lambda version: int(version.split(".")[1]))
    combinations = [
        *(Combination(python, version, None, None, MEETS_PYTHON) for version, python in found.items()),
        Combination(found.get(oldest, sys.executable), oldest, "3.1.8", "2026-03-20", MEETS_AIRFLOW),
        Combination(found.get(oldest, sys.executable), oldest, "3.2.2", "2026-06-15", MEETS_AIRFLOW),
    ]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda each: run(each, options.work), combinations))
    missing = [Outcome("newest", version, failed="not found here") for version in others.keys() - found.keys()]
    print_table(outcomes + missing)
    return 0 if all(outcome.fine for outcome in outcomes) else 1


def find_python(version: str) -> str | None:
    """Return an interpreter that actually starts; download nothing."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    find_command = (*UV, "python", "find", "--no-python-downloads", "--system", version)
    found = subprocess.run(find_command, capture_output=True, text=True, check=False)
    candidates = [
        shutil.which(f"python{version}"),
        *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")), reverse=True),
        found.stdout.strip() if found.returncode == 0 else None,
    ]
    for candidate in filter(None, candidates):
        probe = "import sqlite3, ssl, venv, sys; print('%d.%d' % sys.version_info[:2])"
        output = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
        if output.stdout.strip() == version:
            return candidate
    return None


def run(what: Combination, work: Path) -> Outcome:
    """Create the environment, run the tests in it, and return the outcome."""
    started = time.monotonic()
    outcome = Outcome(what.airflow or "newest", what.python_version)
    report = work / f"{what.name}.xml"
    with (work / f"{what.name}.log").open("w+") as log:
        try:
            python = install(what, work, log)
            outcome.airflow, outcome.python = versions_of(python)
            tests = [python, "-m", "pytest", "-q", f"--basetemp={work / what.name}.tmp", f"--junitxml={report}"]
            outcome.fine = subprocess.run([*tests, *what.tests], cwd=ROOT, stdout=log, stderr=log).returncode == 0
        except subprocess.CalledProcessError as error:
            log.write(f"{error}\n")
            outcome.failed = "could not be installed"
        log.seek(0)
        output = log.read()
    if report.exists():
        (suite,) = ElementTree.parse(report).iter("testsuite")
        count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        broken = count["failures"] + count["errors"]
        outcome.failed = str(broken)
        outcome.passed = str(count["tests"] - broken - count["skipped"])
    outcome.seconds = f"{time.monotonic() - started:.0f}"
    with _print_lock:
        print(f"\n--- Airflow {outcome.airflow}, Python {outcome.python}", flush=True)
        print(output.strip().splitlines()[-1] if outcome.fine else output[-20_000:], flush=True)
    return outcome


def install(what: Combination, work: Path, log: object) -> str:
    """
    Create an environment with Airflow, this project and what the tests need; return its interpreter.

    With an older Airflow, this project's dependencies and the tests' are the oldest that their declarations allow.

    :raises subprocess.CalledProcessError: it could not be created
    """
    folder = work / what.name
    python = str(folder / "bin" / "python")

    def call(*command: str) -> None:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)  # type: ignore[call-overload]

    call(*UV, "venv", "--quiet", "--python", what.python, str(folder))
    pip = (*UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", python)
    if what.airflow is None:
        call(*pip, "--editable", ".", *TOOLS)
    else:
        oldest = ("--resolution", "lowest-direct", "--exclude-newer", str(what.day))
        call(*pip, *oldest, f"apache-airflow=={what.airflow}", *DEPENDENCIES, *TOOLS)
        call(*pip, "--no-deps", "--editable", ".")
    return python


def versions_of(python: str) -> tuple[str, str]:
    probe = "import sys, importlib.metadata as m; print(m.version('apache-airflow'), sys.version.split()[0])"
    output = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True)
    airflow, version = output.stdout.split()
    return airflow, version


def print_table(outcomes: list[Outcome]) -> None:
    rows = [("Airflow", "Python", "passed", "failed", "seconds")]
    rows += [(each.airflow, each.python, each.passed, each.failed, each.seconds) for each in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print("\nSeconds include the installation; two ran at a time.")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
