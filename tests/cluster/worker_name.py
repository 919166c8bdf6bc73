"""Airflow calls this to record where a task instance ran: two workers on one machine need distinct names."""

from __future__ import annotations

import os
import socket


def worker_name() -> str:
    return os.environ.get("IMAGEN_WORKER") or socket.gethostname()
