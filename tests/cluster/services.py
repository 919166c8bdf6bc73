"""The services an Airflow cluster needs: PostgreSQL and Redis, as Debian packages them, on their own ports."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

from running_airflow import free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from running_airflow import Processes


class PostgreSQL:
    """
    A server that trusts every client and syncs nothing to disk: its data need not outlive the machine.

    :param folder: for its data
    """

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.port = free_port()
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/airflow"
        self._processes = processes
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root

    def create(self) -> None:
        """Create a database and start."""
        self._folder.mkdir()
        if self._user:
            subprocess.run(["chown", self._user, str(self._folder)], check=True)
        subprocess.run(
            ["initdb", "-A", "trust", "-U", "airflow", "-E", "UTF8", "--locale=C.UTF-8", str(self._folder)],
            check=True,
            capture_output=True,
            user=self._user,
            cwd="/",
        )
        self.start()
        self._execute("CREATE DATABASE airflow", database="postgres")

    def start(self) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 200,
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._processes.start_program("postgres", "postgres", "-D", str(self._folder), *flags, user=self._user)
        wait_until(self._is_up, "PostgreSQL")

    def restart(self) -> None:
        """Restart as ``systemctl restart postgresql`` does: every connection is cut."""
        self._processes.stop("postgres", signal.SIGINT)
        self.start()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._execute(query, *values)

    def dump(self) -> bytes:
        """Dump the whole database as text."""
        command = ["pg_dump", "-h", "127.0.0.1", "-p", str(self.port), "-U", "airflow", "airflow"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def _is_up(self) -> bool:
        return subprocess.run(["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0

    def _execute(self, query: str, *values: Any, database: str = "airflow") -> list[tuple[Any, ...]]:
        import psycopg2

        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="airflow", dbname=database)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


class Redis:
    """A server that keeps nothing on disk."""

    def __init__(self, processes: Processes) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._processes = processes

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._processes.start_program("redis", "redis-server", *options)
        wait_until(self._is_up, "Redis")
        self._processes.start_program("redis-monitor", "redis-cli", "-p", str(self.port), "monitor")

    def _is_up(self) -> bool:
        command = ["redis-cli", "-p", str(self.port), "ping"]
        return subprocess.run(command, capture_output=True).stdout.strip() == b"PONG"
