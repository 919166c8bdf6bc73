"""
Everything that can go wrong, as classes that carry data.

::

    ImagenError
    ├── AuthenticationError        the key is missing, wrong, disabled or lacks the scope   hopeless
    ├── OutOfCreditsError          the account has no money left (a 403 in this API)        hopeless
    ├── InvalidRequestError        the API refused the request                              hopeless
    ├── ModelWithdrawnError        the model is gone                                        hopeless
    ├── BudgetExceededError        ``max_usd`` would be passed                              hopeless
    ├── RateLimitedError           too many requests                                        retry helps
    ├── ServerError                the API answered that it failed                          retry helps
    ├── ConnectionFailedError      the request never left                                   retry helps
    ├── LostAnswerError            sent, outcome unknown                                    retry helps
    │   └── ChargedButLostError    sent, billed, and the answer is gone                     hopeless
    ├── UnreadableResponseError    a success that holds no picture we can read              hopeless
    ├── FilteredError              the model withheld some or all pictures                  hopeless
    │   └── EmptyResultError       not one picture came, and no reason was given            hopeless
    ├── DownloadError              the picture could not be fetched                         retry helps
    │   ├── UnsafeAddressError     the link leads into a private network                    hopeless
    │   ├── LinkExpiredError       the link is dead                                         hopeless
    │   └── BadImageError          what came is no whole picture, or too large              retry helps
    ├── StorageError               the picture could not be written                         retry helps
    ├── JournalError               what was paid for cannot be written down durably         retry helps
    │   └── OwnershipLostError     another attempt of the task owns the journal now         hopeless
    ├── StoppedError               the task was told to stop; nothing new was sent          retry helps
    └── ItemsFailedError           some items of a task failed, each with its own error     as its parts

    InvalidArgumentsError          a ``ValueError``: refused before any money is spent      hopeless

Whether another try of the task can help is :attr:`ImagenError.retry_helps`: the operator and
:class:`~airflow_provider_imagen.policies.retry.ImagenRetryPolicy` ask it, nobody parses a message.
No message holds the API key, a header, or the query string of a signed link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class ImagenError(Exception):
    """
    Base of every error of this package.

    :param message: what was asked, what happened, what to do next
    :param status: HTTP status of the answer, ``None`` when there was none
    :param kind: the API's own machine-readable reason (``error.data.kind`` or ``error.name``)
    :param request_id: the API's id of this HTTP call (``requestId`` in an error body)
    :param inference_id: the API's id of the paid work (``x-inference-id``)
    :param client_request_id: the id we sent (``X-Client-Request-Id``)
    :param model: model id of the request
    :param field: name of the API field at fault
    :param usd: what the failed call was charged, in USD, when that is known
    """

    retry_helps: bool = False
    """Whether another try of the task, with nothing changed, may end better."""

    generations: Sequence[Any] = ()
    """What earlier requests of the same ``ImagenHook.generate_images`` call brought: paid for, and not to be lost."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        kind: str | None = None,
        request_id: str | None = None,
        inference_id: str | None = None,
        client_request_id: str | None = None,
        model: str | None = None,
        field: str | None = None,
        usd: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.request_id = request_id
        self.inference_id = inference_id
        self.client_request_id = client_request_id
        self.model = model
        self.field = field
        self.usd = usd

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling although most parameters are keyword-only."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[ImagenError], args: tuple[Any, ...], state: dict[str, Any]) -> ImagenError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class AuthenticationError(ImagenError):
    """The key is missing, wrong, disabled, or may not make images (401, some 403). A retry does not help."""


class OutOfCreditsError(ImagenError):
    """The account has no money left (403 of kind ``err_insufficent_credits``). A retry does not help."""


class InvalidRequestError(ImagenError):
    """The API or the model behind it refused the request (400, 422, or a 500 that wraps one). A retry does not help."""


class ModelWithdrawnError(ImagenError):
    """
    The model is gone (404). A retry does not help; another model does.

    :param replaced_by: the successor the API names, if any
    """

    def __init__(self, message: str, *, replaced_by: str | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.replaced_by = replaced_by


class BudgetExceededError(ImagenError):
    """
    The next request could pass ``max_usd``. A retry does not help: what was spent stays spent.

    :param spent_usd: charged so far, over all tries of the task, in USD
    :param max_usd: the cap, in USD
    :param items_done: items whose pictures are safe
    :param items_left: items for which nothing was bought
    """

    def __init__(
        self,
        message: str,
        *,
        spent_usd: float,
        max_usd: float,
        items_done: int,
        items_left: int,
        **data: Any,
    ) -> None:
        super().__init__(message, **data)
        self.spent_usd = spent_usd
        self.max_usd = max_usd
        self.items_done = items_done
        self.items_left = items_left


class RateLimitedError(ImagenError):
    """
    Too many requests (429). A retry helps, after a wait.

    :param retry_after: seconds the API asks to wait, ``None`` when it does not say
    """

    retry_helps = True

    def __init__(self, message: str, *, retry_after: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.retry_after = retry_after


class ServerError(ImagenError):
    """
    The API answered that it, or the model behind it, failed (500, 502, 503 in its own JSON). A retry helps.

    :param retry_after: seconds the API asks to wait, ``None`` when it does not say
    """

    retry_helps = True

    def __init__(self, message: str, *, retry_after: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.retry_after = retry_after


class ConnectionFailedError(ImagenError):
    """No connection was made, so nothing was sent and nothing bought. A retry helps."""

    retry_helps = True


class LostAnswerError(ImagenError):
    """
    The request was sent and its outcome is unknown (time-out, reset, cut-off body, 504, 524, a gateway's page).

    It may have been billed. A retry of the task helps: it looks the request up by its id before it pays again.
    """

    retry_helps = True


class ChargedButLostError(LostAnswerError):
    """
    The API says it billed the request, but the answer is gone and cannot be asked for again.

    ``inference_id`` and ``usd`` say what to claim back. A retry would pay a second time, so it is not made
    unless ``on_lost_answer="resend"``.
    """

    retry_helps = False


class UnreadableResponseError(ImagenError):
    """The API answered success, in a form that holds no picture we know how to read. A retry would pay again."""


class FilteredError(ImagenError):
    """
    The model withheld some or all pictures of an item. A retry would pay again for the same prompt.

    :param requested: pictures asked for
    :param made: pictures that came
    """

    def __init__(self, message: str, *, requested: int, made: int, **data: Any) -> None:
        super().__init__(message, **data)
        self.requested = requested
        self.made = made


class EmptyResultError(FilteredError):
    """The API answered success without a single picture and gave no reason. A retry would pay again."""


class DownloadError(ImagenError):
    """
    A picture could not be fetched from its link. A retry helps: it downloads again, it does not buy again.

    :param host: host of the link; never its path or query, which may be signed
    """

    retry_helps = True

    def __init__(self, message: str, *, host: str | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.host = host


class UnsafeAddressError(DownloadError):
    """The link, or a redirect from it, leads to a private address. A retry does not help."""

    retry_helps = False


class LinkExpiredError(DownloadError):
    """The link answers that it is gone (401, 403, 404, 410). A retry does not help."""

    retry_helps = False


class BadImageError(DownloadError):
    """What the link gave is not a whole picture, not a picture at all, or larger than allowed."""


class StorageError(ImagenError):
    """A picture could not be written to ``output_path`` or read there. A retry helps, and buys nothing again."""

    retry_helps = True


class JournalError(ImagenError):
    """The journal cannot be written or read, so nothing may be bought. A retry helps once its store is back."""

    retry_helps = True


class OwnershipLostError(JournalError):
    """
    Another attempt of the same task has taken the journal over, or somebody deleted it: this one may not send anything.

    A retry does not help: it would take the journal away from the attempt that has it.
    """

    retry_helps = False


class StoppedError(ImagenError):
    """The task was told to stop (killed, marked, timed out) and sent nothing new. A retry goes on from there."""

    retry_helps = True


class ItemsFailedError(ImagenError):
    """
    Some items of a task failed; the pictures of the others are safe.

    :param failures: one error per failed item, in prompt order
    """

    def __init__(self, message: str, *, failures: Sequence[ImagenError], **data: Any) -> None:
        super().__init__(message, **data)
        self.failures = tuple(failures)

    @property
    def retry_helps(self) -> bool:  # type: ignore[override]
        """Whether another try may end better for at least one item."""
        return any(failure.retry_helps for failure in self.failures)

    @property
    def retry_after(self) -> float | None:
        """The longest wait any of the failures asks for, in seconds."""
        waits = [
            failure.retry_after
            for failure in self.failures
            if isinstance(failure, (RateLimitedError, ServerError)) and failure.retry_after is not None
        ]
        return max(waits, default=None)


@dataclass(frozen=True)
class Problem:
    """
    One thing wrong with one argument.

    :param field: the argument's name, with its place for an item of a list (``prompt[3].seed``)
    :param value: what was given, shortened
    :param allowed: what is allowed, as the end of the sentence "…: "
    """

    field: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.field}={_shorten(self.value)}: {self.allowed}"


def _shorten(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class InvalidArgumentsError(ValueError):
    """
    Arguments were refused before any money was spent. A retry does not help.

    :param problems: everything that is wrong, at least one
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        shown = lines[:20]
        if len(lines) > len(shown):
            shown.append(f"… and {len(lines) - len(shown)} more")
        super().__init__(
            shown[0] if len(lines) == 1 else f"{len(lines)} problems:\n" + "\n".join(f"- {line}" for line in shown)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling."""
        return (type(self), (self.problems,))
