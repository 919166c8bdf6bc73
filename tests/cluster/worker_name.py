"""Airflow notes down where a task instance ran, by calling this: two workers on one machine need names of their own."""

from __future__ import annotations

import os
import socket


def worker_name() -> str:
    return os.environ.get("IMAGEN_WORKER") or socket.gethostname()
