"""
The errors of this package: classes that carry data.

::

    ImagenError
    ├── AuthenticationError        the key is missing, wrong, disabled or lacks the scope   no retry
    ├── OutOfCreditsError          the account is out of credits (a 403 in this API)        no retry
    ├── InvalidRequestError        the API rejected the request                             no retry
    ├── ModelWithdrawnError        the model is retired                                     no retry
    ├── BudgetExceededError        the next request could exceed a spending cap             no retry
    ├── RateLimitedError           too many requests                                        retry helps
    ├── ServerError                the API reported a failure of its own                    retry helps
    ├── ConnectionFailedError      the request was never sent                               retry helps
    ├── LostAnswerError            sent, outcome unknown                                    retry helps
    │   └── ChargedButLostError    sent and billed, but the response was lost               no retry
    ├── UnreadableResponseError    success, but with no image we can read                   no retry
    ├── FilteredError              the model withheld some or all images                    no retry
    │   └── EmptyResultError       no images and no reason                                  no retry
    ├── DownloadError              the image could not be downloaded                        retry helps
    │   ├── UnsafeAddressError     the URL leads into a private network                     no retry
    │   ├── LinkExpiredError       the URL no longer works                                  no retry
    │   └── BadImageError          the body is incomplete, not an image, or too large       retry helps
    ├── StorageError               the image could not be written                           retry helps
    ├── JournalError               the journal cannot be written or read                    retry helps
    │   └── OwnershipLostError     another attempt of the task owns the journal now         no retry
    ├── StoppedError               the task was cancelled; nothing new was sent             retry helps
    └── ItemsFailedError           some items of a task failed, each with its own error     depends on them

    InvalidArgumentsError          a ``ValueError``: rejected before any money is spent     no retry

:attr:`ImagenError.retry_helps` says whether another attempt of the task can help; the operator and
:class:`~airflow_provider_imagen.policies.retry.ImagenRetryPolicy` use it, and nobody parses messages.
No message contains the API key, a header, or the query string of a signed URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal


class ImagenError(Exception):
    """
    Base class of this package's errors.

    :param message: what was requested, what happened, what to do next
    :param status: HTTP status of the response, ``None`` if there was none
    :param kind: the API's machine-readable reason (``error.data.kind`` or ``error.name``)
    :param request_id: the API's id of this HTTP call (``requestId`` in an error body)
    :param inference_id: the API's id of the paid work (``x-inference-id``)
    :param client_request_id: the id we sent (``X-Client-Request-Id``)
    :param model: model id of the request
    :param field: the API field that caused the error
    :param usd: charge for the failed call in USD, if known
    """

    retry_helps: bool = False
    """Whether another attempt of the task may succeed without changes."""

    generations: Sequence[Any] = ()
    """Results of earlier requests in the same ``ImagenHook.generate_images`` call, which are already paid for."""

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
        """Support pickling despite the keyword-only parameters."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[ImagenError], args: tuple[Any, ...], state: dict[str, Any]) -> ImagenError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class AuthenticationError(ImagenError):
    """The key is missing, wrong, disabled, or not allowed to generate images (401, some 403). A retry does not help."""


class OutOfCreditsError(ImagenError):
    """The account is out of credits (403 of kind ``err_insufficent_credits``). A retry does not help."""


class InvalidRequestError(ImagenError):
    """The API or the model's service rejected the request (400, 422, or a 500 wrapping one). A retry does not help."""


class ModelWithdrawnError(ImagenError):
    """
    The model is retired (404). A retry does not help; another model does.

    :param replaced_by: the replacement the API names, if any
    """

    def __init__(self, message: str, *, replaced_by: str | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.replaced_by = replaced_by


class BudgetExceededError(ImagenError):
    """
    The next request could exceed ``max_usd``, or ``max_usd_per_day`` or ``max_usd_per_month`` of the connection.

    A retry does not help: ``max_usd`` covers all attempts, and the others everything that the API key spends.

    :param spent_usd: charged so far, in USD: over all attempts of the task, or to the API key in the period
    :param max_usd: the cap, in USD
    :param items_done: items whose images are safe
    :param items_left: items for which nothing was requested
    :param period: ``day`` or ``month`` for a cap of the connection; ``None`` for ``max_usd``
    """

    def __init__(
        self,
        message: str,
        *,
        spent_usd: float,
        max_usd: float,
        items_done: int,
        items_left: int,
        period: Literal["day", "month"] | None = None,
        **data: Any,
    ) -> None:
        super().__init__(message, **data)
        self.period = period
        self.spent_usd = spent_usd
        self.max_usd = max_usd
        self.items_done = items_done
        self.items_left = items_left


class RateLimitedError(ImagenError):
    """
    Too many requests (429). A retry helps after a wait.

    :param retry_after: seconds the API asks to wait, ``None`` if it does not say
    """

    retry_helps = True

    def __init__(self, message: str, *, retry_after: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.retry_after = retry_after


class ServerError(ImagenError):
    """
    The API reported that it or the model's service failed (500, 502, 503 in its own JSON). A retry helps.

    :param retry_after: seconds the API asks to wait, ``None`` if it does not say
    """

    retry_helps = True

    def __init__(self, message: str, *, retry_after: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.retry_after = retry_after


class ConnectionFailedError(ImagenError):
    """No connection was made, so nothing was sent or charged. A retry helps."""

    retry_helps = True


class LostAnswerError(ImagenError):
    """
    The request was sent, but its outcome is unknown (timeout, reset, truncated body, 504, 524, a gateway's page).

    It may have been billed. A retry of the task helps: it looks up the request by its id before paying again.
    """

    retry_helps = True

    @classmethod
    def sent_with_another_key(cls, client_request_id: str, *, model: str) -> LostAnswerError:
        """Return the error for an in-doubt request that only another API key can look up. A retry does not help."""
        error = cls(
            f"A previous attempt ended while this request was in flight (client request id {client_request_id}). It "
            f"was sent with another API key, and only that key can look it up in the API's log. It is not sent again: "
            f"restore the key and clear the task, resolve it with `airflow-imagen reconcile --imagen-conn-id` and a "
            f'connection that has the key, or set on_lost_answer="resend".',
            client_request_id=client_request_id,
            model=model,
        )
        error.retry_helps = False
        return error

    def with_failed_lookup(self, failure: ImagenError) -> LostAnswerError:
        """Return the error for a lost response whose charge could not be looked up either."""
        return LostAnswerError(
            f"{self} Whether it was billed could not be looked up: {failure}",
            client_request_id=self.client_request_id,
            inference_id=self.inference_id,
            model=self.model,
        )


class ChargedButLostError(LostAnswerError):
    """
    The API billed the request, but its response was lost and cannot be fetched again.

    ``inference_id`` and ``usd`` identify what to reclaim. A retry would pay a second time, so there is none
    unless ``on_lost_answer="resend"``.
    """

    retry_helps = False

    @classmethod
    def of_charge(
        cls, usd: Decimal | None, *, model: str | None, client_request_id: str, inference_id: str | None
    ) -> ChargedButLostError:
        """
        Return the error for a charge whose images cannot be retrieved.

        :param usd: the charge in USD; ``None`` when the amount is unknown
        """
        from airflow_provider_imagen.money import format_usd

        cost = format_usd(usd) if usd is not None else "an unknown amount"
        return cls(
            f"Charged but lost: {model or 'the API'} billed {cost} and the response is gone (inference id "
            f"{inference_id}, client request id {client_request_id}). The request is sent again only with "
            f'on_lost_answer="resend".',
            inference_id=inference_id,
            client_request_id=client_request_id,
            model=model,
            usd=float(usd) if usd is not None else None,
        )


class UnreadableResponseError(ImagenError):
    """The API reported success, but returned no image in a form we can read. A retry would pay again."""


class FilteredError(ImagenError):
    """
    The model withheld some or all images of an item. A retry would pay again for the same prompt.

    :param requested: number of images requested
    :param made: number of images returned
    """

    def __init__(self, message: str, *, requested: int, made: int, **data: Any) -> None:
        super().__init__(message, **data)
        self.requested = requested
        self.made = made


class EmptyResultError(FilteredError):
    """The API reported success but returned no images and no reason. A retry would pay again."""


class DownloadError(ImagenError):
    """
    An image could not be downloaded. A retry helps: it downloads again without paying again.

    :param host: host of the URL, never its path or query, which may be signed
    """

    retry_helps = True

    def __init__(self, message: str, *, host: str | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.host = host


class UnsafeAddressError(DownloadError):
    """The URL, or a redirect from it, leads to a private address. A retry does not help."""

    retry_helps = False


class LinkExpiredError(DownloadError):
    """The URL no longer works (401, 403, 404, 410). A retry does not help."""

    retry_helps = False


class BadImageError(DownloadError):
    """The downloaded body is an incomplete image, not an image at all, or too large. A retry helps."""


class StorageError(ImagenError):
    """An image could not be written to ``output_path`` or read from it. A retry helps without paying again."""

    retry_helps = True


class JournalError(ImagenError):
    """The journal cannot be written or read, so nothing may be sent. A retry helps once its store is back."""

    retry_helps = True


class OwnershipLostError(JournalError):
    """
    Another attempt of the task took over the journal, or the journal was deleted; this attempt may send nothing.

    A retry does not help: it would take the journal away from its current owner.
    """

    retry_helps = False


class StoppedError(ImagenError):
    """The task was cancelled (killed, marked or timed out) and sent nothing new. A retry continues from there."""

    retry_helps = True


class ItemsFailedError(ImagenError):
    """
    Some items of a task failed; the images of the others are kept.

    :param failures: one error per failed item, in prompt order
    """

    def __init__(self, message: str, *, failures: Sequence[ImagenError], **data: Any) -> None:
        super().__init__(message, **data)
        self.failures = tuple(failures)

    @property
    def retry_helps(self) -> bool:  # type: ignore[override]
        """Whether another attempt may help at least one item."""
        return any(failure.retry_helps for failure in self.failures)

    @property
    def retry_after(self) -> float | None:
        """The longest ``Retry-After`` of any failure, in seconds; ``None`` if there is none."""
        waits = [
            failure.retry_after
            for failure in self.failures
            if isinstance(failure, (RateLimitedError, ServerError)) and failure.retry_after is not None
        ]
        return max(waits, default=None)


@dataclass(frozen=True)
class Problem:
    """
    One problem with one argument.

    :param field: the argument's name, with the position in a list (``prompt[3].seed``)
    :param value: the value given, shortened
    :param allowed: what is allowed, worded to follow ``field=value:``
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
    Arguments were rejected before any money was spent. A retry does not help.

    :param problems: everything that is wrong, at least one problem
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
        """Support pickling: ``args`` holds the message, not the problems."""
        return (type(self), (self.problems,))
