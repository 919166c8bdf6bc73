"""The Airflow UI of the demo, served by the demo's own process, so that nothing remains when it ends."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USERNAME: Final = "demo"


class DemoUI:
    """
    The Airflow UI on a free port of 127.0.0.1, with a single user.

    It asks for a random password, because other users of this machine, and web pages in the browser, can reach the
    port as well. The user is a viewer: without a scheduler, no task could run.

    Create it before Airflow is imported, as it changes the environment that Airflow reads.

    :param home: Airflow home
    :raises OSError: loopback has no free port
    """

    def __init__(self, home: Path) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.password = secrets.token_urlsafe(9)
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps({USERNAME: self.password}))
        os.environ.update(
            AIRFLOW__API__BASE_URL=self._url,
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=f"{USERNAME}:viewer",
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
        )

    def serve(self, *, dag_id: str, run_id: str, on_ready: Callable[[str], None]) -> None:
        """
        Serve until SIGINT or SIGTERM.

        :param on_ready: called with the URL of the run's images once the server accepts requests
        :raises Exception: the server does not start
        """
        import uvicorn
        from airflow.api_fastapi.app import create_app

        url = f"{self._url}/dags/{quote(dag_id)}/runs/{quote(run_id, safe='')}/plugin/imagen_run_pictures"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                on_ready(url)

        config = uvicorn.Config(create_app("core"), log_config=None, access_log=False, timeout_graceful_shutdown=1)
        try:
            Server(config).run([self._socket])
        except KeyboardInterrupt:  # the signal, which uvicorn repeats once it has shut down
            pass
        except SystemExit as error:
            raise RuntimeError("Airflow's API server did not start.") from error


def open_browser(url: str) -> None:
    """
    Open a URL in the browser named by ``BROWSER``, or else in one with a window of its own, if there is one.

    Returns at once, because some browsers run until they are closed.
    """
    if sys.platform == "darwin" or {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
