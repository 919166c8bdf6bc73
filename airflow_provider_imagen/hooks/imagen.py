"""The hook that makes authenticated calls to the AI/ML API with an Airflow connection."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_provider_imagen.exceptions import (
    ImagenError,
    InvalidArgumentsError,
    InvalidRequestError,
    UnreadableResponseError,
)
from airflow_provider_imagen.hooks.connection import (
    CONNECTION_TYPE,
    allowed_private_hosts,
    connection_settings,
    missing_connection_message,
    read_extra,
    usage_caps,
)
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from airflow.sdk import Connection, ObjectStoragePath

    from airflow_provider_imagen.accounting.reconciliation import Reconciliation
    from airflow_provider_imagen.accounting.statement import Statement
    from airflow_provider_imagen.api.client import ApiClient
    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.catalogue.availability import LiveModel, ModelHealth
    from airflow_provider_imagen.catalogue.pricing import PriceList
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.download.downloader import Downloader
    from airflow_provider_imagen.exceptions import Problem
    from airflow_provider_imagen.hooks.capped_spending import CappedSpending
    from airflow_provider_imagen.run.input_reader import InputReader
    from airflow_provider_imagen.run.plan import PlanQuote
    from airflow_provider_imagen.run.usage_caps import UsageCap
    from airflow_provider_imagen.storage.convert import ImageFormat

DEFAULT_MODEL = "imagen-3.0-generate-002"
IMAGE_SCOPE = "model:image"

_SPENDING_LOCK = threading.Lock()


class ImagenHook(BaseHook):
    """
    Call the AI/ML API's image endpoints with the key of an Airflow connection.

    Fields of the connection: ``password`` is the API key, ``host`` the base URL (default
    ``https://api.aimlapi.com``, with or without ``/v1``). ``port``, and ``schema`` for the scheme or path, may be given
    separately, as in a connection URI; a connection whose fields contradict each other is rejected. The extra holds
    ``model`` (default model), ``connect_timeout`` (10 s), ``read_timeout`` (300 s), ``sandbox`` (use the built-in
    sandbox; no key needed), ``verify`` (``true``, ``false`` or the path of a CA bundle), and ``max_usd_per_day`` and
    ``max_usd_per_month`` (what the key may spend before nothing more is sent, in USD); other fields are rejected, as
    are connections of another type. Proxies come from the environment.

    ``host`` may be an OpenAI-compatible gateway, such as LiteLLM's proxy. It passes on images, their cost
    (``x-litellm-response-cost``) and errors, but not the request id and the request log, so in-doubt requests cannot
    be looked up; nor key, balance, prices and deprecations. Gateways drop or reject fields that OpenAI does not have,
    such as ``seed`` and ``aspect_ratio`` of other vendors' models.

    :param imagen_conn_id: id of the Airflow connection
    """

    conn_name_attr = "imagen_conn_id"
    default_conn_name = "imagen_default"
    conn_type = CONNECTION_TYPE
    hook_name = "AI/ML API Images"

    def __init__(self, imagen_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.imagen_conn_id = imagen_conn_id
        self._client: ApiClient | None = None
        self._downloader: Downloader | None = None
        self._connection: Connection | None = None
        self._spending: CappedSpending | None = None

    # --- the connection form for Airflow 3.1; later versions read get_provider_info -----------------------------------

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return which standard fields of the connection form are hidden, and how the others are labelled."""
        from airflow_provider_imagen.get_provider_info import get_provider_info

        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the extra fields of the connection form; Airflow 3.1 has no number fields, so they are text."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import BooleanField, StringField

        from airflow_provider_imagen.get_provider_info import get_provider_info

        def make_field(label: str, description: str, schema: dict[str, Any]) -> Any:
            default = schema.get("default")
            if "boolean" in schema["type"]:
                return BooleanField(lazy_gettext(label), default=default, description=description)
            return StringField(
                lazy_gettext(label),
                default=None if default is None else str(default),
                description=description,
                widget=BS3TextFieldWidget(),
            )

        fields = get_provider_info()["connection-types"][0]["conn-fields"]
        return {name: make_field(**field) for name, field in fields.items()}

    # --- connecting ---------------------------------------------------------------------------------------------------

    def get_conn(self) -> ApiClient:
        """
        Return the API client of this connection, created on first use.

        :raises AirflowNotFoundException: there is no such connection
        :raises ValueError: the connection is for another service, a field is invalid or unknown, or there is no key
        """
        if self._client is None:
            from airflow_provider_imagen.api.client import ApiClient

            self._client = ApiClient(connection_settings(self._get_connection()))
        return self._client

    @property
    def default_model(self) -> str:
        """The connection's model, else :data:`DEFAULT_MODEL`."""
        model = read_extra(self._get_connection()).get("model")
        return (model.strip() if isinstance(model, str) else "") or DEFAULT_MODEL

    @property
    def usage_caps(self) -> tuple[UsageCap, ...]:
        """The connection's caps on what the API key spends per day and month."""
        return usage_caps(self._get_connection())

    def close(self) -> None:
        """Close the hook's network connections."""
        for part in (self._client, self._downloader):
            if part is not None:
                part.close()
        self._client = self._downloader = None

    def _get_connection(self) -> Connection:
        if self._connection is None:
            from airflow_provider_imagen._compat import AirflowNotFoundException

            try:
                self._connection = self.get_connection(self.imagen_conn_id)
            except AirflowNotFoundException:
                raise AirflowNotFoundException(missing_connection_message(self.imagen_conn_id)) from None
        return self._connection

    # --- calls --------------------------------------------------------------------------------------------------------

    def generate_images(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        num_images: int | None = None,
        aspect_ratio: str | None = None,
        seed: int | None = None,
        input_images: Any = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Generation]:
        """
        Generate the images of one prompt, after checking all arguments.

        Errors that cannot have been billed are retried. There is no journal, so unlike ``ImagenGenerateOperator``, a
        task that calls this method pays again when it is retried. The caps of the connection count what this hook has
        spent even while the API's figures lag behind, so use one hook for all calls of a task.

        :param prompt: the prompt; its maximum length depends on the model (400 characters for Imagen)
        :param model: model id; default: the connection's
        :param num_images: number of images
        :param aspect_ratio: for example ``16:9``
        :param seed: for models that have one
        :param input_images: images to edit, for models that take them: URLs, ``data:`` URIs, paths, or records of
            stored images; one or a list
        :param parameters: other fields of the model, by their API names
        :return: one :class:`~airflow_provider_imagen.api.responses.Generation` per request; more than one only for
            models that generate a single image per request. Each has ``urls`` and ``pictures``.
        :raises InvalidArgumentsError: an argument is wrong; nothing was spent
        :raises BudgetExceededError: a cap of the connection could be exceeded; nothing was spent
        :raises ImagenError: see :mod:`airflow_provider_imagen.exceptions`; its ``generations`` hold the results of
            this call's earlier requests
        """
        import time

        from airflow_provider_imagen.api.client_request_id import HOOK_REQUEST, new_client_request_id
        from airflow_provider_imagen.api.retries import resending
        from airflow_provider_imagen.catalogue.pricing import PriceList
        from airflow_provider_imagen.catalogue.request_builder import build_requests
        from airflow_provider_imagen.hooks.task_instance_key import current_task_instance_key

        named = {
            "prompt": prompt,
            "model": model,
            "num_images": num_images,
            "aspect_ratio": aspect_ratio,
            "seed": seed,
            "input_images": input_images,
        }
        given = {name: value for name, value in named.items() if value is not None}
        inputs = self.get_input_reader()
        problems: list[Problem] = []
        (resolved,) = inputs.resolve([({"model": self.default_model, **(parameters or {}), **given}, "")], problems)
        if problems:
            raise InvalidArgumentsError(problems)
        requests = build_requests(resolved, can_store=True)  # the caller receives the bytes
        spending = self._get_spending()
        prices = PriceList() if spending is None else self._get_prices()
        if spending is not None:
            spending.check(requests, prices)
        client = self.get_conn()
        ti_key = current_task_instance_key()

        def send(request: ImageRequest) -> Generation:
            body, files = inputs.wire(request)
            client_request_id = new_client_request_id(
                dag_id=ti_key.dag_id, task_id=ti_key.task_id, request=HOOK_REQUEST
            )
            return client.generate(request.path, body, client_request_id=client_request_id, files=files)

        def send_with_retries(request: ImageRequest) -> Generation:
            return resending(wait=time.sleep)(send, request)

        generations: list[Generation] = []
        for request in requests:
            try:
                if spending is None:
                    generations.append(send_with_retries(request))
                else:
                    generations.append(spending.pay(request, prices, send_with_retries))
            except ImagenError as error:
                if generations:
                    error.generations = tuple(generations)
                    ids = ", ".join(str(generation.inference_id) for generation in generations)
                    error.add_note(f"{len(generations)} of {len(requests)} requests had already been paid for: {ids}.")
                raise
        return generations

    def quote(
        self,
        prompt: Any = None,
        *,
        model: str | None = None,
        num_images: int | None = None,
        aspect_ratio: str | None = None,
        seed: int | None = None,
        input_images: Any = None,
        metadata_columns: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> PlanQuote:
        """
        Return what images would cost, after checking the arguments as the operator does. Free.

        Prices come from the API's list of models, or else from the catalogue's last known prices;
        :attr:`~airflow_provider_imagen.run.plan.PlanQuote.source` says which.

        :param prompt: a string, or a list of strings or mappings, as for ``ImagenGenerateOperator``
        :param metadata_columns: keys of the mappings that are metadata, as for ``ImagenGenerateOperator``
        :raises InvalidArgumentsError: an argument is wrong
        """
        from airflow_provider_imagen.run.plan import quote_plan

        named = {
            "model": model,
            "num_images": num_images,
            "aspect_ratio": aspect_ratio,
            "seed": seed,
            "input_images": input_images,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return quote_plan(
            prompt=prompt,
            arguments={"model": self.default_model, **(parameters or {}), **given},
            metadata_columns=metadata_columns,
            prices=self._get_prices(),
            resolve=self.get_input_reader().resolve,
        )

    def _get_prices(self) -> PriceList:
        """Return live prices, or an empty list, which stands for the last known ones."""
        from airflow_provider_imagen.catalogue.pricing import PriceList

        try:
            return PriceList.from_response(self.list_models(include_pricing=True))
        except ImagenError as error:
            self.log.warning("No live prices (%s); using the last known ones.", error)
            return PriceList()

    def _get_spending(self) -> CappedSpending | None:
        """Return what this hook has spent under the caps of the connection; ``None`` without caps."""
        with _SPENDING_LOCK:
            if self._spending is None and (caps := self.usage_caps):
                from airflow_provider_imagen.hooks.capped_spending import CappedSpending

                self._spending = CappedSpending(caps, reader=self.get_conn())
            return self._spending

    def check_models(self, models: Iterable[str]) -> list[ModelHealth]:
        """
        Return whether models are available, deprecated or retired, and their replacements. Free.

        :param models: ids or aliases
        :return: one :class:`~airflow_provider_imagen.catalogue.availability.ModelHealth` per model
        """
        from airflow_provider_imagen.catalogue.availability import judge_models

        today = datetime.now(UTC).date()
        listed = self.list_models()
        return judge_models(models, listed=listed, retired=self._list_retired(listed), today=today)

    def look_up_model(self, model_id: str) -> LiveModel:
        """
        Look up an id that is not in the catalogue: it may be an alias, a new model, or unknown to the API. Free.

        :return: a :class:`~airflow_provider_imagen.catalogue.availability.LiveModel`; if it has ``known_as``, use that
            id to get the catalogue's checks
        """
        from airflow_provider_imagen.catalogue.availability import look_up

        listed = self.get_conn().find_models(model_id)
        return look_up(model_id, listed=listed, retired=self._list_retired(listed))

    def _list_retired(self, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the API's list of deprecated models; an empty list for gateways, which have none."""
        from airflow_provider_imagen.catalogue.availability import is_gateway

        try:
            return self.list_deprecations()
        except InvalidRequestError as error:
            if error.status != 404 or not is_gateway(listed):
                raise
            return []

    def get_input_reader(self) -> InputReader:
        """Return a reader of input images for this connection's requests."""
        from airflow_provider_imagen.hooks.folders import open_folder, open_input_roots
        from airflow_provider_imagen.run.input_reader import InputReader

        return InputReader(open_path=open_folder, fetch=self.download, roots=open_input_roots())

    def download(self, url: str) -> bytes:
        """
        Return the bytes of one image, downloaded completely, within a size limit and without sending the API key.

        Private addresses are refused, except the API's own host and ``[imagen] allowed_download_hosts``.

        :raises DownloadError: see its subclasses
        """
        return self.get_downloader().fetch(url).data

    def store(
        self,
        picture: bytes | str,
        *,
        folder: str | Path | ObjectStoragePath,
        name: str | None = None,
        provenance: bool | Mapping[str, Any] = True,
        image_format: ImageFormat | None = None,
        thumbnail_pixels: int | None = None,
    ) -> dict[str, Any]:
        """
        Store one image as the operator does: verified, written atomically, and with its provenance embedded.

        For images from :meth:`generate_images` or from another service. Replaces a file of the same name; does not
        change the folder's manifest. ::

            @task
            def keep(url):
                return ImagenHook().store(
                    url, folder="s3://aws_default@media/logos", name="logo", provenance={"model": "a-model"}
                )

        :param picture: the image's bytes, or the URL to :meth:`download` it from
        :param folder: destination folder, like the operator's ``output_path``
        :param name: file name in the folder, in which ``/`` creates subfolders; the extension is chosen from the
            bytes. Default: the first 16 digits of the SHA-256 of the bytes as received, so a retry writes the same name
        :param provenance: metadata to embed besides the task's ids: ``model``, ``prompt``, ``seed``, ``alt_text``,
            ``created_at`` …; other keys become parameters. ``True`` embeds the task's ids only, ``False`` nothing. The
            file is marked as made by a model only if ``model`` or ``digital_source_type`` is given
        :param image_format: convert to ``png``, ``jpeg``, ``webp`` or ``avif``; ``None`` keeps the bytes
        :param thumbnail_pixels: longer side of a preview, in pixels; ``None`` for no preview
        :return: the image's record, in the form of a manifest line; unknown values are ``None``
        :raises InvalidArgumentsError: the name is not a valid file name in the folder, or the provenance is wrong
        :raises BadImageError: the bytes are not a complete image
        :raises DownloadError: see its subclasses
        :raises StorageError: the file could not be written
        """
        from msgspec.structs import replace

        from airflow_provider_imagen.hooks.folders import open_folder
        from airflow_provider_imagen.hooks.task_instance_key import current_task_instance_key
        from airflow_provider_imagen.image_record import ImageRecord
        from airflow_provider_imagen.signed_urls import without_query
        from airflow_provider_imagen.storage.manifest import manifest_line
        from airflow_provider_imagen.storage.naming import literal_stem
        from airflow_provider_imagen.storage.paths import path_text
        from airflow_provider_imagen.storage.provenance import DIGITAL_SOURCE_TYPE, Provenance, find_provenance_problem
        from airflow_provider_imagen.storage.save_image import save_image

        facts = dict(provenance) if isinstance(provenance, Mapping) else {}
        if (problem := find_provenance_problem(facts)) is not None:
            raise InvalidArgumentsError([problem])
        ti_key = current_task_instance_key()
        described = None
        if provenance is not False:
            described = Provenance(ti_key=ti_key, digital_source_type=None).changed(facts)
            if "model" in facts and "digital_source_type" not in facts:
                described = replace(described, digital_source_type=DIGITAL_SOURCE_TYPE)
        stem = literal_stem(path_text(name)) if name is not None else None
        data = picture if isinstance(picture, bytes) else self.download(picture)
        saved = save_image(
            data,
            folder=open_folder(path_text(folder)),
            stem=stem or hashlib.sha256(data).hexdigest()[:16],
            owner=ti_key.identity,
            provenance=described,
            image_format=image_format,
            thumbnail_pixels=thumbnail_pixels,
        )
        if saved.file.original is not None:
            self.log.info(
                "%s: the conversion dropped its C2PA content credentials, so the file as delivered is kept, too: %s",
                saved.file.file_name,
                saved.file.original,
            )
        for note in saved.notes:
            self.log.warning("%s: %s", saved.file.file_name, note)
        known = {name: facts[name] for name in ImageRecord.__struct_fields__ if name in facts}
        url = without_query(picture) if isinstance(picture, str) else None
        record = ImageRecord.of(saved.file, **(known | {"url": url}))
        return manifest_line(record, saved.file, ti_key=ti_key, created_at=datetime.now(UTC)).to_json()

    def get_downloader(self, *, cancelled: threading.Event | None = None) -> Downloader:
        """
        Return the downloader for this connection, created on first use.

        :param cancelled: ends downloads when set. Ignored once the downloader exists
        """
        if self._downloader is None:
            from airflow_provider_imagen.download.downloader import Downloader

            client = self.get_conn()
            self._downloader = Downloader(
                allow_private_hosts=allowed_private_hosts(self._get_connection(), client.settings.base_url),
                verify=client.settings.verify,
                connect_timeout_seconds=client.settings.connect_timeout_seconds,
                cancelled=cancelled,
            )
        return self._downloader

    def get_key(self) -> dict[str, Any]:
        """Return the key's name, prefix, scopes and limit, and whether it is disabled (``GET /v1/key``). Free."""
        return self.get_conn().get_key()

    def get_balance(self) -> float:
        """Return the balance in USD (``GET /v2/billing``). Free."""
        balance = self.get_conn().get_balance().get("current_balance")
        if isinstance(balance, bool) or not isinstance(balance, (int, float)) or not isfinite(balance):
            raise UnreadableResponseError("The response to GET /v2/billing has no balance.")
        return float(balance)

    def list_models(self, *, include_pricing: bool = False) -> list[dict[str, Any]]:
        """Return the image models that the API serves now (``GET /v1/models``). Free."""
        return self.get_conn().list_models(include_pricing=include_pricing)

    def list_deprecations(self) -> list[dict[str, Any]]:
        """Return the deprecated models (``GET /v1/models/deprecations``). Free."""
        return self.get_conn().list_deprecations()

    def get_request_logs(
        self, *, start: datetime, end: datetime, model: str | Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """
        Return the log of requests made with this key, failed ones included (``GET /v2/logs``). Free.

        :param start: start of the time window, with a time zone
        :param end: end of the window, at most 92 days after the start
        :param model: return only requests for this model, or these models
        """
        return list(self.get_conn().iter_request_logs(start=start, end=end, model=model))

    def get_statement(self, *, since: datetime | None = None, until: datetime | None = None) -> Statement:
        """
        Return what this connection's key was charged, and how the account's ledger compares. Free.

        Reads 100 rows of the request log in 0.35 s, because the API limits how often it may be read. Requests appear in
        the log some time after they end.

        :param since: start of the time window, with a time zone; default: start of the current month, in UTC
        :param until: end of the window, which it does not include, with a time zone; default: now
        :return: a :class:`~airflow_provider_imagen.accounting.statement.Statement`; ``to_json()`` makes it an XCom
        :raises InvalidArgumentsError: a time has no time zone, or the window is empty
        """
        from airflow_provider_imagen.hooks.charges import read_charges

        return read_charges({self.imagen_conn_id: self.get_conn()}, since=since, until=until)

    def reconcile(
        self,
        folders: str | Path | ObjectStoragePath | Iterable[str | Path | ObjectStoragePath],
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        verify: bool = False,
    ) -> Reconciliation:
        """
        Match what this connection's key was charged with the images in output folders.

        Free, and writes nothing. ::

            @task
            def audit():
                result = ImagenHook().reconcile("s3://aws_default@media/postcards")
                if not result.is_complete:
                    raise ValueError(f"{len(result.missing)} charges or images are missing")
                return result.to_json()

        :param folders: output folders, or folders above them
        :param since: as in :meth:`get_statement`
        :param until: as in :meth:`get_statement`
        :param verify: read every image and compare its SHA-256, not only its size
        :return: a :class:`~airflow_provider_imagen.accounting.reconciliation.Reconciliation`
        :raises InvalidArgumentsError: as in :meth:`get_statement`
        :raises StorageError: there is no output folder, or one cannot be read
        """
        from airflow_provider_imagen.hooks.charges import reconcile_charges
        from airflow_provider_imagen.storage.paths import StoragePath

        given = [folders] if isinstance(folders, (str, StoragePath)) else folders
        clients = {self.imagen_conn_id: self.get_conn()}
        return reconcile_charges(clients, given, since=since, until=until, verify=verify)

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the key can generate images, and a message with its name, its scope and the balance. Free."""
        from airflow_provider_imagen.redaction import scrub

        try:
            try:
                key = self.get_key()
            except InvalidRequestError as error:
                if error.status != 404:
                    raise
                return self._test_gateway(error)
            is_fine, message = self._test_key(key)
            return is_fine, scrub(message, self.get_conn().settings.api_key)
        except Exception as error:  # the connection form shows every error
            return False, scrub(str(error), self._connection.password if self._connection else None)
        finally:
            self.close()

    def _test_gateway(self, error: InvalidRequestError) -> tuple[bool, str]:
        """
        Return the test result for an OpenAI-compatible gateway, which is recognized by its list of models.

        :param error: the host's response to ``GET /v1/key``; raised if the host is not a gateway
        """
        from airflow_provider_imagen.catalogue.availability import is_gateway

        models = self.list_models()
        if not is_gateway(models):
            raise error
        if caps := self.usage_caps:
            return False, f"{caps[0].name} needs what a gateway lacks: the key's usage. Remove it from the connection."
        noun = "model" if len(models) == 1 else "models"
        return True, (
            f"The host is an OpenAI-compatible gateway and accepts the key; it lists {len(models)} {noun}. "
            f"Key, balance, prices and the request log are not available through a gateway."
        )

    def _test_key(self, key: Mapping[str, Any]) -> tuple[bool, str]:
        name = f"Key {key.get('name') or '(unnamed)'!r} ({key.get('prefix') or '????????'}…)"
        scopes = key.get("scopes")
        if key.get("disabled"):
            return False, f"{name} is disabled."
        if isinstance(scopes, list) and scopes and IMAGE_SCOPE not in scopes:
            return False, f"{name} cannot generate images: it lacks the scope {IMAGE_SCOPE}."
        scope = f"scope {IMAGE_SCOPE}" if scopes else "all scopes"
        try:
            balance = self.get_balance()
        except ImagenError as error:
            return True, f"{name} can generate images ({scope}). The balance could not be read: {error}"
        if balance <= 0:
            return False, f"{name} is valid, but the account is out of credits: {format_usd(balance)}."
        usage = "".join(f" {sentence}" for sentence in self._describe_usage())
        return True, f"{name} can generate images ({scope}). Balance: {format_usd(balance)}.{usage}"

    def _describe_usage(self) -> Iterator[str]:
        """
        Yield a sentence about what the key has spent for each cap of the connection.

        :raises ImagenError: it cannot be read, so no task could send anything
        """
        from airflow_provider_imagen.run.usage_caps import read_limit

        for cap in self.usage_caps:
            limit = read_limit(cap, self.get_conn())
            yield f"Spent {limit.when} (UTC): {format_usd(limit.used_usd)} of {format_usd(cap.max_usd)}."
