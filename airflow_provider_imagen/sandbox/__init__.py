"""
A local server that behaves like the AI/ML API and draws real images.

Use it to try the package without a key and to test your own DAGs; this project's tests use it too. It is written from
the API's documentation and shares nothing with the client it tests but the format of money. Importing it is cheap: the
web framework is loaded when a server starts, the drawing library when an image is drawn.
"""

from __future__ import annotations

from airflow_provider_imagen.sandbox.control import SandboxControl
from airflow_provider_imagen.sandbox.control_types import Charge, SeenRequest
from airflow_provider_imagen.sandbox.faults import Fault
from airflow_provider_imagen.sandbox.server import Sandbox, embedded, serve
from airflow_provider_imagen.sandbox.settings import Settings
from airflow_provider_imagen.sandbox_key import SANDBOX_API_KEY

__all__ = [
    "SANDBOX_API_KEY",
    "Charge",
    "Fault",
    "Sandbox",
    "SandboxControl",
    "SeenRequest",
    "Settings",
    "embedded",
    "serve",
]
