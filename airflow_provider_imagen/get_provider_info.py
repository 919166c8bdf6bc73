"""Provider metadata for Airflow. Called in every Airflow process, so it imports nothing."""

from __future__ import annotations

from typing import Any

_REPOSITORY = "https://github.com/airflow-provider-imagen/airflow-provider-imagen"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as defined by Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-imagen",
        "name": "AI/ML API Images",
        "description": "Generate images through the AI/ML API: every image stored, accounted for and paid for once.",
        "integrations": [
            {
                "integration-name": "AI/ML API Images",
                "external-doc-url": "https://docs.aimlapi.com/api-references/image-models",
                "how-to-guide": [f"{_REPOSITORY}#readme"],
                "logo": f"{_REPOSITORY}/raw/main/docs/logo.svg",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": "AI/ML API Images", "python-modules": ["airflow_provider_imagen.hooks.imagen"]}],
        "operators": [
            {"integration-name": "AI/ML API Images", "python-modules": ["airflow_provider_imagen.operators.imagen"]}
        ],
        "notifications": ["airflow_provider_imagen.notifications.imagen.ImagenNotifier"],
        "task-decorators": [{"name": "imagen", "class-name": "airflow_provider_imagen.decorators.imagen.imagen_task"}],
        # Airflow loads plugins by entry point; it reads this list only without [core] lazy_discover_providers, and then
        # skips the plugin that it has loaded.
        "plugins": [{"name": "imagen", "plugin-class": "airflow_provider_imagen.plugins.imagen.ImagenPlugin"}],
        "cli": ["airflow_provider_imagen.airflow_commands.get_commands"],
        "extra-links": ["airflow_provider_imagen.links.gallery_link.PicturesLink"],
        "config": {
            "imagen": {
                "description": "Settings of tasks that generate images.",
                "options": {
                    "grace_seconds": {
                        "description": "How long requests and downloads in flight may continue once a task is "
                        "cancelled, in seconds, since they are already paid for. Results so far are published first.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "25",
                        "default": "60",
                    },
                    "input_roots": {
                        "description": "The only folders that tasks may read input images from: absolute paths and "
                        "URIs of object stores, separated by commas. Symbolic links out of them are not followed. If "
                        "empty, tasks may read whatever the worker can. Set this if people who may not read the "
                        "worker's files can choose input_images, for example through params.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "/data/pictures, s3://media/inputs",
                        "default": "",
                    },
                    "allowed_download_hosts": {
                        "description": "Hosts in private networks that images may be downloaded from, with or without "
                        "a port, separated by commas. The API's own host and port need not be listed. Link-local "
                        "addresses and metadata services are always refused.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "minio.internal:9000, 10.0.3.7",
                        "default": "",
                    },
                },
            }
        },
        "connection-types": [
            {
                "connection-type": "imagen",
                "hook-class-name": "airflow_provider_imagen.hooks.imagen.ImagenHook",
                "hook-name": "AI/ML API Images",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {
                        "host": "https://api.aimlapi.com",
                        "password": "32 hexadecimal characters",
                        # Airflow 3.3.2 compares an empty port with 0 and finds that it "differs".
                        "port": "Enter 0; Airflow 3.3 cannot test a connection whose port is empty",
                    },
                },
                "conn-fields": {
                    "model": {
                        "label": "Default model",
                        "description": "Model id for tasks that do not set one, for example imagen-3.0-generate-002.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "connect_timeout": {
                        "label": "Connect timeout (seconds)",
                        "description": "Longest wait for a connection.",
                        "schema": {"type": ["number", "null"], "default": 10, "minimum": 0.1, "maximum": 86400},
                    },
                    "read_timeout": {
                        "label": "Read timeout (seconds)",
                        "description": "Longest wait for the headers of a response, and again for its body. "
                        "Images can take minutes.",
                        "schema": {"type": ["number", "null"], "default": 300, "minimum": 1, "maximum": 86400},
                    },
                    "max_usd_per_day": {
                        "label": "Cap per day (USD)",
                        "description": "What the API key may spend in a UTC day before nothing more is sent.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "max_usd_per_month": {
                        "label": "Cap per month (USD)",
                        "description": "What the API key may spend in a UTC month before nothing more is sent.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "sandbox": {
                        "label": "Sandbox",
                        "description": "Use the built-in sandbox: real HTTP on this machine, no key, no cost.",
                        "schema": {"type": ["boolean", "null"], "default": False},
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "true, false, or the path of a CA bundle.",
                        "schema": {"type": ["string", "null"], "default": "true"},
                    },
                },
            }
        ],
    }
