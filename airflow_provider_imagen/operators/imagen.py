"""The operator that generates images from templated prompts."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_provider_imagen.links.gallery_link import PicturesLink
from airflow_provider_imagen.storage.paths import path_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from airflow.sdk import BaseOperatorLink, Context, ObjectStoragePath

    from airflow_provider_imagen.operators.arguments import Reuse, Tolerance
    from airflow_provider_imagen.operators.execution import TaskExecution
    from airflow_provider_imagen.run.ports import OnLostAnswer
    from airflow_provider_imagen.storage.convert import ImageFormat

    Folder = str | Path | ObjectStoragePath


class ImagenGenerateOperator(BaseOperator):
    """
    Generate images with the AI/ML API, in one task for one prompt or thousands.

    Every argument is checked against the chosen model's schema before anything is sent. Each request is journaled
    before it is sent and its response right after, so a retry continues where the last attempt ended and pays for
    nothing twice (see the documentation, "Guarantees"). The return value is one URL per image in prompt order; XCom
    ``images`` holds one record per image, XCom ``summary`` the counts and costs, and XCom ``failure``, if the attempt
    failed, the reason.

    :param prompt: a string, or a list of strings or of mappings
        ``{"prompt": …, "name": …, "alt_text": …, "metadata": {…}, <any API field>: …}`` whose fields override the
        arguments for that item; or an XComArg of these. ``alt_text`` describes the image for people who cannot see it,
        and is embedded in the file. A string that ends in ``.prompt`` names a template file. An empty list skips the
        task. (templated)
    :param model: model id; default: the connection's, else ``imagen-3.0-generate-002``. (templated)
    :param num_images: images per prompt, 1 to 4 for Imagen. (templated)
    :param aspect_ratio: ``1:1``, ``9:16``, ``16:9``, ``3:4`` or ``4:3`` for Imagen. (templated)
    :param seed: 0 to 4294967295 for Imagen; cannot be combined with ``add_watermark=True``. (templated)
    :param enhance_prompt: let the model rewrite the prompt
    :param person_generation: ``dont_allow`` or ``allow_adult``
    :param safety_setting: ``block_low_and_above``, ``block_medium_and_above`` or ``block_only_high``
    :param add_watermark: let the model add an invisible watermark
    :param convert_base64_to_url: ``False`` returns the images in the response itself; needs ``output_path``
    :param input_images: images to edit, for models that take them: a URL, a ``data:`` URI, a path object or a path
        string for ``ObjectStoragePath``, a record from another task's XCom ``images``, or a list of these. They are
        sent in the field that the chosen model uses. (templated)
    :param metadata_columns: keys of the prompt mappings that are recorded with the images and never sent, such as
        columns of a table; a mapping ``metadata`` in an item is recorded as well. Values are text, numbers, booleans,
        dates or ``None``, and are recorded as text
    :param parameters: any other field of the model, by its API name. (templated)
    :param output_path: folder to store images in, as a string for ``ObjectStoragePath``
        (``s3://aws_default@media/{{ run_id }}``, ``file:///data/pictures``) or a path object; ``None`` stores
        nothing. (templated)
    :param reuse: ``unchanged`` uses an image that another run has paid for with the same request, instead of paying
        again: the same model, prompt, fields and input images, compared by content, whatever its file is called. An
        input image given by URL is never the same. The image is looked up in ``output_path``, then in ``reuse_from``,
        verified, and copied, with this run's ``provenance``, unless it already has its name in ``output_path``. Without
        a ``seed``, the same request would give another picture; setting ``reuse`` means that you accept the earlier
        one. ``None`` never reuses images of other runs. Needs ``output_path``
    :param reuse_from: folder or list of folders with images of this provider, to be searched after ``output_path``, in
        order, each given by its path or that of its manifest; a folder without images is skipped. Needs ``reuse``.
        (templated)
    :param limit: request images only for so many prompts, counted from the start of the list; the others are only
        validated. 1 to 1000000; ``None`` for all prompts. (templated)
    :param filename: file name pattern; default ``{task_id}-{name}-{image}-{identity}.{extension}``.
        (templated)
    :param image_format: convert to ``png``, ``jpeg``, ``webp`` or ``avif``; ``None`` keeps the bytes as delivered
    :param thumbnail_pixels: longer side of a preview stored with each image, 16 to 2048 pixels; ``None`` for no
        previews
    :param contact_sheet: store a labelled overview of the first 400 images beside them
    :param provenance: embed model, prompt and other metadata in each file; a mapping adds fields, or removes those
        set to ``None``; ``{"metadata": True}`` adds the item's metadata. ``digital_source_type`` is a term of IPTC's
        vocabulary
    :param concurrency: maximum number of requests in flight in this task, 1 to 256
    :param requests_per_minute: maximum rate at which this task starts requests, 0.1 to 60000; ``None`` for no limit
    :param max_usd: spending cap of this task over all its attempts, in USD
    :param on_failure: whether a failed item fails the task: ``fail``, or ``accept`` to continue without it
    :param on_filtered: whether images withheld by the model fail the task: ``fail`` or ``accept``
    :param on_lost_answer: what to do about a request whose response was lost: ``check`` looks it up in the API's log
        and resends it only if it was not billed, ``resend`` always resends it, ``fail`` gives up the item
    :param lost_answer_patience_seconds: how long ``check`` waits for a request to appear in the API's log, 0 to 3600
        seconds
    :param fallback_models: model ids to use instead, in order, if the model has been retired
    :param imagen_conn_id: id of the Airflow connection
    """

    template_fields: Sequence[str] = (
        "prompt",
        "model",
        "num_images",
        "aspect_ratio",
        "seed",
        "input_images",
        "parameters",
        "output_path",
        "reuse_from",
        "limit",
        "filename",
    )
    # Deliberately unusual: Airflow reads any string in a template field that ends like this as a file.
    template_ext: Sequence[str] = (".prompt",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "prompt": "json",
        "input_images": "json",
        "parameters": "json",
    }
    # Empty: the plugin lets the web server build the "Pictures" button, so no task has to push an XCom for it.
    operator_extra_links: Collection[BaseOperatorLink] = ()
    ui_color = "#eef4ea"

    execution: TaskExecution | None = None
    """The latest attempt in this process, for the success callback and OpenLineage; ``None`` before the first."""

    _is_killed = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the button to subclasses, which the plugin does not know, unless they declare links themselves."""
        super().__init_subclass__(**kwargs)
        if "operator_extra_links" not in vars(cls):
            cls.operator_extra_links = cls.operator_extra_links or (PicturesLink(),)

    def __init__(
        self,
        *,
        prompt: Any = None,
        model: str | None = None,
        num_images: int | str | None = None,
        aspect_ratio: str | None = None,
        seed: int | str | None = None,
        enhance_prompt: bool | None = None,
        person_generation: str | None = None,
        safety_setting: str | None = None,
        add_watermark: bool | None = None,
        convert_base64_to_url: bool | None = None,
        input_images: Any = None,
        metadata_columns: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        output_path: Folder | None = None,
        reuse: Reuse | None = None,
        reuse_from: Folder | Sequence[Folder] | None = None,
        limit: int | str | None = None,
        filename: str | None = None,
        image_format: ImageFormat | None = None,
        thumbnail_pixels: int | None = None,
        contact_sheet: bool = False,
        provenance: bool | Mapping[str, Any] = True,
        concurrency: int = 4,
        requests_per_minute: float | None = None,
        max_usd: float | None = None,
        on_failure: Tolerance = "fail",
        on_filtered: Tolerance = "fail",
        on_lost_answer: OnLostAnswer = "check",
        lost_answer_patience_seconds: float = 90.0,
        fallback_models: Sequence[str] = (),
        imagen_conn_id: str = "imagen_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**_with_defaults(kwargs))
        self.prompt = prompt
        self.model = model
        self.num_images = num_images
        self.aspect_ratio = aspect_ratio
        self.seed = seed
        self.enhance_prompt = enhance_prompt
        self.person_generation = person_generation
        self.safety_setting = safety_setting
        self.add_watermark = add_watermark
        self.convert_base64_to_url = convert_base64_to_url
        self.input_images = input_images
        self.metadata_columns = metadata_columns
        self.parameters = parameters
        self.output_path = path_text(output_path)  # a task of Airflow 3.1 cannot render a pathlib.Path
        self.reuse = reuse
        self.reuse_from = (
            [path_text(each) for each in reuse_from] if isinstance(reuse_from, (list, tuple)) else path_text(reuse_from)
        )
        self.limit = limit
        self.filename = filename
        self.image_format = image_format
        self.thumbnail_pixels = thumbnail_pixels
        self.contact_sheet = contact_sheet
        self.provenance = provenance
        self.concurrency = concurrency
        self.requests_per_minute = requests_per_minute
        self.max_usd = max_usd
        self.on_failure = on_failure
        self.on_filtered = on_filtered
        self.on_lost_answer = on_lost_answer
        self.lost_answer_patience_seconds = lost_answer_patience_seconds
        self.fallback_models = fallback_models
        self.imagen_conn_id = imagen_conn_id

    @staticmethod
    def argument_defaults() -> dict[str, Any]:
        """Return the default of each argument by its name; ``inspect.Parameter.empty`` for one that is required."""
        parameters = signature(ImagenGenerateOperator.__init__).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name not in ("self", "kwargs")}

    def execute(self, context: Context) -> list[str]:
        """
        Generate the images and return their URLs, in prompt order.

        :raises InvalidArgumentsError: an argument is wrong; nothing was spent
        :raises ImagenError: see :mod:`airflow_provider_imagen.exceptions`; the next attempt reuses what succeeded
        """
        from airflow_provider_imagen.operators.execution import TaskExecution

        self.execution = TaskExecution(self, context, is_killed=lambda: self._is_killed)
        return self.execution.run()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:  # noqa: ARG002 - OpenLineage passes it
        """
        Return the lineage of this attempt; OpenLineage calls this after failures as well.

        :return: an ``OperatorLineage``, or ``None`` without lineage to report or without the OpenLineage provider
        """
        if self.execution is None or self.execution.lineage is None:
            return None
        from airflow_provider_imagen.operators.lineage import to_openlineage

        return to_openlineage(self.execution.lineage)

    def on_kill(self) -> None:
        """Stop sending requests. Called in a signal handler, so it only sets a flag."""
        self._is_killed = True


def _with_defaults(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with our retry policy, unless one is set, and the callback that finishes the journal."""
    from airflow_provider_imagen._compat import HAS_RETRY_POLICY
    from airflow_provider_imagen.operators.journal_location import finish_journal

    shared = kwargs.get("default_args") or {}
    given = kwargs.get("on_success_callback", shared.get("on_success_callback"))
    callbacks = list(given) if isinstance(given, (list, tuple, set)) else [given] if given is not None else []
    if finish_journal not in callbacks:
        callbacks.append(finish_journal)
    policy = {}
    # A mapped operator passes None if its author gave no policy.
    if HAS_RETRY_POLICY and kwargs.get("retry_policy") is None and shared.get("retry_policy") is None:
        from airflow_provider_imagen.policies.retry import ImagenRetryPolicy

        policy = {"retry_policy": ImagenRetryPolicy()}
    return {**kwargs, **policy, "on_success_callback": callbacks}
