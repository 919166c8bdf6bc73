"""The hook: one connection, turned into authenticated calls to the AI/ML API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseHook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from airflow.sdk import Connection

    from airflow_provider_imagen.api.answers import Generation
    from airflow_provider_imagen.api.client import ApiClient, ClientSettings
    from airflow_provider_imagen.api.download import Downloader
    from airflow_provider_imagen.api.request import ImageRequest

DEFAULT_MODEL = "imagen-3.0-generate-002"
IMAGE_SCOPE = "model:image"


class ImagenHook(BaseHook):
    """
    Call the AI/ML API's image endpoints with the key of an Airflow connection.

    Fields of the connection: ``password`` is the API key, ``host`` the base URL (default
    ``https://api.aimlapi.com``, with or without ``/v1``). Its extra holds ``model`` (default model),
    ``connect_timeout`` (10 s), ``read_timeout`` (300 s), ``sandbox`` (talk to the built-in sandbox; no key needed)
    and ``verify`` (``true``, ``false`` or the path of a CA bundle). Proxies come from the environment.

    :param imagen_conn_id: id of the connection
    """

    conn_name_attr = "imagen_conn_id"
    default_conn_name = "imagen_default"
    conn_type = "imagen"
    hook_name = "AI/ML API Images"

    def __init__(self, imagen_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.imagen_conn_id = imagen_conn_id
        self._client: ApiClient | None = None
        self._downloader: Downloader | None = None
        self._connection: Connection | None = None

    # --- the connection form, as Airflow 3.1 asks for it; later versions read get_provider_info -----------------------

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Name and hide fields of the connection form."""
        from airflow_provider_imagen.get_provider_info import get_provider_info

        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Add the typed fields of the connection form."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import BooleanField, FloatField, StringField

        from airflow_provider_imagen.get_provider_info import get_provider_info

        kinds = {"number": FloatField, "boolean": BooleanField}
        fields = get_provider_info()["connection-types"][0]["conn-fields"]
        return {
            name: kinds.get(field["schema"]["type"] if isinstance(field["schema"]["type"], str) else "", StringField)(
                lazy_gettext(field["label"]),
                default=field["schema"].get("default"),
                description=field["description"],
                **({} if field["schema"]["type"] == "boolean" else {"widget": BS3TextFieldWidget()}),
            )
            for name, field in fields.items()
        }

    # --- connecting ---------------------------------------------------------------------------------------------------

    def get_conn(self) -> ApiClient:
        """
        Make the client of this connection, once.

        :raises ValueError: a field of the connection cannot be used, or there is no key
        """
        if self._client is None:
            from airflow_provider_imagen.api.client import ApiClient

            self._client = ApiClient(self._settings())
        return self._client

    @property
    def default_model(self) -> str:
        """The connection's model, else :data:`DEFAULT_MODEL`."""
        model = self._get_connection().extra_dejson.get("model")
        return model if isinstance(model, str) and model.strip() else DEFAULT_MODEL

    def close(self) -> None:
        """Close all connections of this hook."""
        for part in (self._client, self._downloader):
            if part is not None:
                part.close()
        self._client = self._downloader = None

    def _get_connection(self) -> Connection:
        if self._connection is None:
            self._connection = self.get_connection(self.imagen_conn_id)
        return self._connection

    def _settings(self) -> ClientSettings:
        return connection_settings(self._get_connection())

    # --- calls --------------------------------------------------------------------------------------------------------

    def generate_images(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        num_images: int | None = None,
        aspect_ratio: str | None = None,
        seed: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Generation]:
        """
        Generate the pictures of one prompt, checked before anything is paid.

        Errors that certainly bought nothing are tried again. There is no journal behind this method: a retry of the
        task that calls it pays again, which ``ImagenGenerateOperator`` does not.

        :param prompt: text; its longest length depends on the model (400 characters for Imagen)
        :param model: model id; default: the connection's
        :param num_images: pictures to make
        :param aspect_ratio: for example ``16:9``
        :param seed: for models that have one
        :param parameters: further fields of the model by their API names
        :return: one :class:`~airflow_provider_imagen.api.answers.Generation` per request; more than one only for
            models that make a single picture per request. Each has ``urls`` and ``pictures``.
        :raises InvalidArgumentsError: refused before paying
        :raises ImagenError: see :mod:`airflow_provider_imagen.exceptions`
        """
        import secrets
        import time

        from airflow_provider_imagen.api.request import build_requests
        from airflow_provider_imagen.api.resending import resending

        requests = build_requests(
            {
                **(parameters or {}),
                "prompt": prompt,
                "model": model or self.default_model,
                "num_images": num_images,
                "aspect_ratio": aspect_ratio,
                "seed": seed,
            },
            can_store=True,  # the caller gets the bytes
        )
        client = self.get_conn()

        def send(request: ImageRequest) -> Generation:
            return client.generate(
                request.path, request.body, client_request_id=f"imagen.hook.{secrets.token_hex(8)}"
            )

        return [resending(wait=time.sleep)(send, request) for request in requests]

    def download(self, url: str) -> bytes:
        """
        Fetch one picture, without the key: capped, whole, and from no private address unless the API's is private too.

        :raises DownloadError: see its subclasses
        """
        return self.get_downloader().fetch(url).data

    def get_downloader(self, *, should_stop: Callable[[], bool] = lambda: False) -> Downloader:
        """
        Make the downloader that fits this connection, once.

        :param should_stop: asked while a download goes on; true ends it
        """
        if self._downloader is None:
            from airflow_provider_imagen.api.download import Downloader

            client = self.get_conn()
            self._downloader = Downloader(
                allow_private_hosts=_is_private(client.host),
                verify=client.settings.verify,
                connect_timeout_seconds=client.settings.connect_timeout_seconds,
                should_stop=should_stop,
            )
        return self._downloader

    def get_key(self) -> dict[str, Any]:
        """Ask what the key is (``GET /v1/key``): name, prefix, disabled, scopes, limit. Free."""
        return self.get_conn().get_key()

    def get_balance(self) -> float:
        """Ask for the balance in USD (``GET /v2/billing``). Free."""
        return float(self.get_conn().get_balance()["current_balance"])

    def list_models(self, *, include_pricing: bool = False) -> list[dict[str, Any]]:
        """Ask for the image models the API serves now (``GET /v1/models``). Free."""
        return self.get_conn().list_models(include_pricing=include_pricing)

    def list_deprecations(self) -> list[dict[str, Any]]:
        """Ask which models are on their way out (``GET /v1/models/deprecations``). Free."""
        return self.get_conn().list_deprecations()

    def get_request_logs(
        self, *, start: datetime, end: datetime, model: str | Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """
        Ask for the log of requests made with this key (``GET /v2/logs``), failed ones too. Free.

        :param start: start of the window, with a time zone
        :param end: its end, at most 92 days later
        :param model: only requests made to this model, or these
        """
        return list(self.get_conn().iter_request_logs(start=start, end=end, model=model))

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the key can make images, and the balance. Free: it never generates."""
        try:
            key = self.get_key()
            balance = self.get_balance()
        except Exception as error:  # the form shows whatever went wrong
            return False, str(error)
        name = f"Key {key.get('name') or '(unnamed)'!r} ({key.get('prefix') or '????????'}…)"
        scopes = key.get("scopes")
        if key.get("disabled"):
            return False, f"{name} is disabled."
        if isinstance(scopes, list) and scopes and IMAGE_SCOPE not in scopes:
            return False, f"{name} may not make images: it lacks the scope {IMAGE_SCOPE}."
        return True, f"{name} can make images. Balance: {balance:.2f} USD."


def connection_settings(connection: Connection) -> ClientSettings:
    """
    Turn a connection into what the client needs; nothing else reads its fields.

    :raises ValueError: a field cannot be used, or there is no key
    """
    from airflow_provider_imagen.api.client import ClientSettings

    extra = connection.extra_dejson
    settings = ClientSettings(
        base_url=(connection.host or "").strip() or ClientSettings.base_url,
        api_key=(connection.password or "").strip() or None,
        connect_timeout_seconds=_seconds(extra, "connect_timeout", ClientSettings.connect_timeout_seconds),
        read_timeout_seconds=_seconds(extra, "read_timeout", ClientSettings.read_timeout_seconds),
        verify=_verify(extra.get("verify")),
    )
    if connection.port and connection.host and "://" not in connection.host:
        settings = replace(settings, base_url=f"{settings.base_url}:{connection.port}")
    if _truth(extra.get("sandbox"), "sandbox"):
        from airflow_provider_imagen.sandbox import SANDBOX_API_KEY, embedded

        base_url = settings.base_url if connection.host else embedded().url
        return replace(settings, base_url=base_url, api_key=settings.api_key or SANDBOX_API_KEY)
    if settings.api_key is None:
        raise ValueError(
            f"Connection {connection.conn_id!r} has no API key: put it into the password, "
            f'or set "sandbox": true in its extra to try things out without one.'
        )
    return settings


def _is_private(host: str) -> bool:
    """Say whether the API itself is in a private network: a sandbox, or a gateway of one's own."""
    import socket

    from airflow_provider_imagen.api.addresses import is_public_address

    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(addresses) and not any(is_public_address(address) for address in addresses)


def _seconds(extra: Mapping[str, Any], name: str, default: float) -> float:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        seconds = float(cast("Any", value))
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise ValueError(f"Extra {name}={value!r} of the connection: a number of seconds above 0 is allowed")
    return seconds


def _truth(value: Any, name: str) -> bool:
    if value in (None, ""):
        return False
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"Extra {name}={value!r} of the connection: true or false is allowed")


def _verify(value: Any) -> bool | str:
    if value in (None, ""):
        return True
    try:
        return _truth(value, "verify")
    except ValueError:
        return str(value)
