"""The operator: pictures from templated prompts, each one saved, counted and never bought twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator

from airflow_provider_imagen.links.gallery_link import PicturesLink
from airflow_provider_imagen.storage.paths import path_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from airflow.sdk import BaseOperatorLink, Context, ObjectStoragePath

    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.operators.lineage import LineageFacts

    ImageFormat = Literal["png", "jpeg", "webp", "avif"]
    Tolerance = Literal["fail", "accept"]
    OnLostAnswer = Literal["check", "resend", "fail"]


class ImagenGenerateOperator(BaseOperator):
    """
    Generate images with the AI/ML API, one task for one prompt or for thousands.

    Every argument is checked against the chosen model before anything is paid. What a try pays for is written down
    before and after each request, so a retry goes on where the last try ended and buys nothing twice (see the README,
    "What is guaranteed"). The return value is one URL per image in prompt order; XCom ``images`` holds a record per
    image and ``summary`` the counts and costs.

    :param prompt: text, or a list of texts or of mappings ``{"prompt": …, "name": …, <any API field>: …}`` whose
        fields override the arguments for that item; an XComArg of these. Text that ends in ``.prompt`` names a
        template file. An empty list skips the task. (templated)
    :param model: model id; default: the connection's, else ``imagen-3.0-generate-002``. (templated)
    :param num_images: pictures per prompt, 1 to 4 for Imagen. (templated)
    :param aspect_ratio: ``1:1``, ``9:16``, ``16:9``, ``3:4`` or ``4:3`` for Imagen. (templated)
    :param seed: 0 to 4294967295 for Imagen; not together with ``add_watermark=True``. (templated)
    :param enhance_prompt: let the model rewrite the prompt
    :param person_generation: ``dont_allow`` or ``allow_adult``
    :param safety_setting: ``block_low_and_above``, ``block_medium_and_above`` or ``block_only_high``
    :param add_watermark: let the model put an invisible watermark in
    :param convert_base64_to_url: ``False`` asks for the pictures inside the answer; needs ``output_path``
    :param input_images: pictures to work on, for models that edit: a link, a ``data:`` URI, a path as
        ``ObjectStoragePath`` takes it or a path object, a record of an earlier task's XCom ``images``, or a list of
        these; they are put into the chosen model's own field. (templated)
    :param parameters: any further field of the model by its API name. (templated)
    :param output_path: folder to store pictures in, as text that ``ObjectStoragePath`` takes
        (``s3://aws_default@media/{{ run_id }}``, ``file:///data/pictures``) or as a path object; ``None`` stores
        nothing. (templated)
    :param filename: pattern of the file names; default ``{task_id}-{name}-{image}-{identity}.{extension}``.
        (templated)
    :param image_format: convert to ``png``, ``jpeg``, ``webp`` or ``avif``; ``None`` keeps the bytes as delivered
    :param thumbnail_pixels: longer side of a preview of each picture, 16 to 2048 pixels; ``None`` for none
    :param contact_sheet: put the pictures on one labelled sheet beside them, 400 at most
    :param provenance: write what made a picture into its file; a mapping adds fields, or drops those whose value is
        ``None``
    :param concurrency: requests in flight in this task, 1 to 256
    :param requests_per_minute: most requests this task starts in a minute; ``None`` for no limit
    :param max_usd: spending cap of this task over all its tries, in USD
    :param on_failure: what a broken item means for the task: ``fail``, or ``accept`` and go on with the others
    :param on_filtered: what withheld pictures mean for the task: ``fail`` or ``accept``
    :param on_lost_answer: what to do when an answer is lost on the way: ``check`` looks the request up in the API's
        log and sends it again only if it was not billed, ``resend`` sends it again, ``fail`` gives the item up
    :param lost_answer_patience_seconds: how long ``check`` waits for the API's log to show a request, 0 to 3600
        seconds
    :param fallback_models: model ids to try, in order, when the model is withdrawn
    :param imagen_conn_id: id of the connection
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
        "filename",
    )
    # Rare on purpose: any string in a template field with this end is a file.
    template_ext: Sequence[str] = (".prompt",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "prompt": "json",
        "input_images": "json",
        "parameters": "json",
    }
    operator_extra_links: Collection[BaseOperatorLink] = (PicturesLink(),)
    ui_color = "#eef4ea"

    lineage_facts: LineageFacts | None = None
    """What this try has made, for OpenLineage; ``None`` until there is something to tell."""

    journal: Journal | None = None
    """The journal of an attempt that has ended, for whoever deletes it; ``None`` before."""

    _is_killed = False

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
        parameters: Mapping[str, Any] | None = None,
        output_path: str | Path | ObjectStoragePath | None = None,
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
        self.parameters = parameters
        self.output_path = path_text(output_path)  # a task of Airflow 3.1 cannot render a pathlib.Path
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

    def execute(self, context: Context) -> list[str]:
        """
        Make the pictures and return their URLs, in prompt order.

        :raises InvalidArgumentsError: an argument is wrong; nothing was paid
        :raises ImagenError: see :mod:`airflow_provider_imagen.exceptions`; what worked is kept for the next try
        """
        from airflow_provider_imagen.operators.execution import TaskExecution

        if _is_ours(type(self)):
            self.operator_extra_links = ()  # the web server makes the link: nothing to store after the try
        return TaskExecution(self, context, is_killed=lambda: self._is_killed).run()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:  # noqa: ARG002 - OpenLineage passes it
        """
        Tell OpenLineage what was read and written; it asks after failures as well.

        :return: an ``OperatorLineage``, or ``None`` when there is nothing to tell or no OpenLineage provider
        """
        if self.lineage_facts is None:
            return None
        from airflow_provider_imagen.operators.lineage import to_openlineage

        return to_openlineage(self.lineage_facts)

    def on_kill(self) -> None:
        """Send nothing new. Called in a signal handler, so it only sets a flag."""
        self._is_killed = True


def _is_ours(operator: type) -> bool:
    """Tell the operators of this package, whose links the web server knows, from a DAG author's subclasses."""
    return operator.__module__.startswith(f"{__package__.partition('.')[0]}.")


def _with_defaults(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Add our retry policy, unless the author gave one, and end the journal once the task has succeeded."""
    from airflow_provider_imagen.operators.journal_location import finish_journal

    shared = kwargs.get("default_args") or {}
    given = kwargs.get("on_success_callback", shared.get("on_success_callback"))
    callbacks = list(given) if isinstance(given, (list, tuple, set)) else [given] if given is not None else []
    if finish_journal not in callbacks:
        callbacks.append(finish_journal)
    policy = {} if "retry_policy" in shared else _retry_policy()
    return {**policy, **kwargs, "on_success_callback": callbacks}


def _retry_policy() -> dict[str, Any]:
    from airflow_provider_imagen._compat import HAS_RETRY_POLICY

    if not HAS_RETRY_POLICY:
        return {}
    from airflow_provider_imagen.policies.retry import ImagenRetryPolicy

    return {"retry_policy": ImagenRetryPolicy()}
