"""Run the benchmarks, print tables, and save the numbers as JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import alternatives, gallery, imports, journal, kills, memory, progress, rate_limits, throughput
from benchmarks.running import lab
from benchmarks.tables import Row, machine, show

QUESTIONS: dict[str, Any] = {
    "imports": imports,
    "throughput": throughput,
    "journal": journal,
    "progress": progress,
    "memory": memory,
    "gallery": gallery,
    "rate_limits": rate_limits,
    "alternatives": alternatives,
    "kills": kills,  # last, because it leaves a scheduler that gives up on a silent task within seconds
}


def main() -> None:
    """Parse the command line and run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"some of {', '.join(QUESTIONS)}; default all")
    parser.add_argument("--quick", action="store_true", help="a few images each: checks that it works, not how fast")
    parser.add_argument("--database", help="SQLAlchemy URL of an empty metadata database; default a new SQLite")
    parser.add_argument("--preload", action="store_true", help="load airflow_provider_imagen.preload in each process")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where to save the numbers")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: choose among {', '.join(QUESTIONS)}")
    chosen = [name for name in QUESTIONS if name in (options.questions or QUESTIONS)]
    found: dict[str, Any] = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab is ended then, too
    show("Machine", [found["machine"]])
    with lab(options.database, preload=options.preload) as running:
        for name in chosen:
            started = time.monotonic()
            rows: list[Row] = QUESTIONS[name].measure(running, quick=options.quick)
            show(QUESTIONS[name].TITLE, rows, QUESTIONS[name].REMARK)
            print(f"\n({name}: {time.monotonic() - started:.0f} s)", flush=True)
            found[name] = rows
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nSaved in {options.json}.")


if __name__ == "__main__":
    main()
