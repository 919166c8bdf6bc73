from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points, requires
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from airflow.sdk import Connection
from packaging.requirements import Requirement

from airflow_provider_imagen import __version__
from airflow_provider_imagen.get_provider_info import get_provider_info
from airflow_provider_imagen.hooks.connection import EXTRA_FIELDS, connection_settings, usage_caps
from airflow_provider_imagen.hooks.imagen import ImagenHook

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def info():
    return get_provider_info()


@pytest.fixture
def connection_type(info):
    (found,) = info["connection-types"]
    return found


def schema(name):
    return json.loads(files("airflow").joinpath(name).read_text())


def class_paths(value):
    """Yield every class and function that provider metadata names."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key.endswith("class-name") or key in ("factory", "handler", "plugin-class"):
                yield part
            else:
                yield from class_paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from class_paths(part)


def test_the_metadata_matches_airflows_schema(info):
    jsonschema.validate(info, schema("provider_info.schema.json"))


def test_the_metadata_is_a_new_copy_on_every_call():
    get_provider_info()["connection-types"].clear()

    assert get_provider_info()["connection-types"]


def test_the_package_name_matches_its_distribution_and_entry_point(info):
    (found,) = [entry for entry in entry_points(group="apache_airflow_provider") if "imagen" in entry.value]

    assert found.load() is get_provider_info
    assert info["package-name"] == found.dist.metadata["Name"] == "airflow-provider-imagen"
    assert found.dist.version == __version__


def test_every_named_module_exists(info):
    for kind in ("hooks", "operators"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                import_module(module)


def test_every_named_class_exists(info):
    paths = [*class_paths(info), *info["extra-links"], *info["cli"], *info.get("notifications", [])]

    assert paths
    for path in paths:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name)), path


def test_every_named_integration_is_described(info):
    described = {integration["integration-name"] for integration in info["integrations"]}

    for kind in ("hooks", "operators"):
        assert {entry["integration-name"] for entry in info[kind]} <= described


def test_every_integration_has_a_logo_and_a_guide_in_the_repository(info):
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

    for integration in info["integrations"]:
        folder, _, name = integration["logo"].partition("/raw/main/")
        assert folder == urls["Source"]
        assert (ROOT / name).is_file()
        assert integration["how-to-guide"] == [urls["Documentation"]]


def test_airflows_list_of_providers_links_to_the_documentation():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

    assert urls["Documentation"].startswith("https://")
    assert not [url for url in urls.values() if "," in url]  # Airflow 3.1 cannot parse these


@pytest.mark.slow
@pytest.mark.parametrize("is_lazy", ["True", "False"])
def test_the_plugin_is_loaded_once_however_airflow_discovers_it(is_lazy, tmp_path):
    """The entry point and the metadata both name it; Airflow reads the latter if it does not discover lazily."""
    code = (
        "from airflow import plugins_manager as m\n"
        "m.ensure_plugins_loaded()\n"
        "plugins = m.plugins if hasattr(m, 'plugins') else m._get_plugins()[0]\n"
        "print([p.name for p in plugins].count('imagen'))\n"
        "from airflow.providers_manager import ProvidersManager\n"
        "print([p.plugin_class for p in ProvidersManager().plugins if p.name == 'imagen'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LAZY_DISCOVER_PROVIDERS": is_lazy},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["1", "['airflow_provider_imagen.plugins.imagen.ImagenPlugin']"]


def test_the_plugin_is_the_one_of_the_entry_point(info):
    (found,) = [entry for entry in entry_points(group="airflow.plugins") if "imagen" in entry.value]
    (plugin,) = info["plugins"]

    assert found.value.replace(":", ".") == plugin["plugin-class"]
    assert found.load().name == plugin["name"]


def test_airflow_knows_every_option_with_its_default(info):
    from airflow.providers_manager import ProvidersManager

    (provider,) = [each for name, each in ProvidersManager().providers.items() if name == "airflow-provider-imagen"]
    options = provider.data["config"]["imagen"]["options"]

    assert set(options) == {"allowed_download_hosts", "grace_seconds", "input_roots"}
    assert all(option["description"].endswith(".") for option in options.values())


def test_the_hook_matches_the_metadata(connection_type):
    assert connection_type["hook-class-name"] == f"{ImagenHook.__module__}.{ImagenHook.__name__}"
    assert connection_type["connection-type"] == ImagenHook.conn_type
    assert connection_type["hook-name"] == ImagenHook.hook_name
    assert ImagenHook.conn_name_attr in inspect.signature(ImagenHook).parameters
    assert inspect.signature(ImagenHook).parameters[ImagenHook.conn_name_attr].default == ImagenHook.default_conn_name


def test_airflow_finds_the_connection_type_with_all_its_fields(connection_type):
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    (form,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "imagen"]

    assert form.hook_name == connection_type["hook-name"]
    assert set(form.extra_fields) == set(connection_type["conn-fields"])
    assert form.standard_fields.password.title == "API key"
    assert form.standard_fields.login.hidden
    assert form.standard_fields.port.placeholder.startswith("Enter 0")


def test_airflow_creates_the_hook_from_a_connection():
    assert isinstance(Connection(conn_id="c", conn_type="imagen", password="k").get_hook(), ImagenHook)


def test_tasks_can_be_written_with_the_decorator(info):
    from airflow.sdk import task

    for decorator in info["task-decorators"]:
        assert callable(getattr(task, decorator["name"]))


def test_the_defaults_in_the_form_match_the_code(connection_type):
    shown = {name: field["schema"].get("default") for name, field in connection_type["conn-fields"].items()}

    def settings(extra):
        return connection_settings(Connection(conn_id="c", conn_type="imagen", password="k", extra=json.dumps(extra)))

    assert settings(shown) == settings({})


def test_the_form_and_the_code_have_the_same_fields(connection_type):
    assert set(connection_type["conn-fields"]) == set(EXTRA_FIELDS)


def test_the_form_and_the_code_allow_the_same_numbers(connection_type):
    schemas = {name: field["schema"] for name, field in connection_type["conn-fields"].items()}
    numbers = {name: schema for name, schema in schemas.items() if "number" in schema["type"]}

    def read(name, value):
        extra = json.dumps({name: value})
        settings = connection_settings(Connection(conn_id="c", conn_type="imagen", password="k", extra=extra))
        return getattr(settings, f"{name}_seconds")

    caps = {name: numbers.pop(name) for name in ("max_usd_per_day", "max_usd_per_month")}
    for name, schema in caps.items():
        assert schema == {"type": ["number", "null"], "exclusiveMinimum": 0}
        connection = Connection(conn_id="c", conn_type="imagen", password="k", extra=json.dumps({name: 0}))
        with pytest.raises(ValueError, match=name):
            usage_caps(connection)

    assert set(numbers) == {"connect_timeout", "read_timeout"}
    for name, schema in numbers.items():
        for value in (schema["minimum"], schema["maximum"]):
            assert read(name, value) == value
        assert read(name, None) == schema["default"]
        with pytest.raises(ValueError, match=name):
            read(name, schema["maximum"] + 1)


def test_every_form_field_is_documented_in_the_hooks_docstring(connection_type):
    for name, field in connection_type["conn-fields"].items():
        assert f"``{name}``" in ImagenHook.__doc__
        assert field["label"]
        assert field["description"].endswith(".")


def test_airflow_requires_what_the_package_leaves_to_it():
    """The rule stated next to the dependencies in ``pyproject.toml`` holds for the installed Airflow."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    left_to_airflow = settings["tool"]["deptry"]["per_rule_ignores"]["DEP003"]
    lines = [line for name in ("apache-airflow-core", "apache-airflow-task-sdk") for line in requires(name)]
    required = {Requirement(line).name for line in lines if "extra ==" not in line}

    assert left_to_airflow
    assert set(left_to_airflow) <= required
    assert {"apache-airflow-core", "apache-airflow-task-sdk"} <= {
        Requirement(line).name for line in requires("apache-airflow") if "==" in line
    }
