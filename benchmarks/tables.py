"""Output of the benchmarks: tables, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One line of a table: column titles and their values."""


def show(title: str, rows: list[Row], remark: str = "") -> None:
    """Print rows as a Markdown table; numbers are right-aligned with three significant digits."""
    print(f"\n### {title}\n")
    if remark:
        print(f"{remark}\n")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    are_numbers = [all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns]
    widths = [max(len(column), *(len(line[place]) for line in cells)) for place, column in enumerate(columns)]

    def line(texts: list[str]) -> str:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, are_numbers, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    print(line(columns))
    print(
        line(
            [
                f"{'-' * (width - 1)}:" if right else "-" * width
                for width, right in zip(widths, are_numbers, strict=True)
            ]
        )
    )
    for each in cells:
        print(line(each), flush=True)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def machine() -> Row:
    """Describe the machine used for the measurement."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        "Airflow": version("apache-airflow"),
        "load before": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
