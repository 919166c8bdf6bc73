"""Errors for money spent without an image, and the requests behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import ChargedButLostError, ImagenError, LostAnswerError
from airflow_provider_imagen.run.results import RequestWithoutImages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from decimal import Decimal

    from airflow_provider_imagen.journal.records import ChargeLost, Intent, RequestState, Target


def charge_lost(
    model: str | None, *, client_request_id: str, inference_id: str | None, usd: Decimal | None
) -> ChargedButLostError:
    """Return the error for a charge whose image cannot be retrieved; ``usd`` is ``None`` when the amount is unknown."""
    cost = f"${usd:.4f}" if usd is not None else "an unknown amount"
    return ChargedButLostError(
        f"Charged but lost: {model or 'the API'} billed {cost} and its response is gone (inference id {inference_id}, "
        f'client request id {client_request_id}). It is not bought again; on_lost_answer="resend" would.',
        inference_id=inference_id,
        client_request_id=client_request_id,
        model=model,
        usd=float(usd) if usd is not None else None,
    )


def charge_lost_before(model: str | None, record: ChargeLost) -> ChargedButLostError:
    """Return the error for a loss that the journal already records."""
    return charge_lost(
        model, client_request_id=record.client_request_id, inference_id=record.inference_id, usd=record.usd
    )


def lost_requests(requests: Mapping[str, RequestState], models: Mapping[str, str]) -> Iterator[RequestWithoutImages]:
    """
    Yield the billed requests in a journal whose responses are gone.

    :param models: model ids by request key, as far as known
    """
    for key, request in requests.items():
        for record in request.charges_lost.values():
            yield lost_request(record, models.get(key), request.target)


def lost_request(record: ChargeLost, model: str | None, target: Target | None) -> RequestWithoutImages:
    """Return a billed request whose response is gone; ``model`` and ``target`` are ``None`` when unknown."""
    return RequestWithoutImages(record.client_request_id, charge_lost_before(model, record), target)


def sent_with_another_key(intent: Intent) -> LostAnswerError:
    """Return the error for an in-doubt request whose outcome only another API key can see in the log."""
    error = LostAnswerError(
        f"An earlier attempt ended while this request was in flight (client request id {intent.client_request_id}). It "
        f"was sent with another API key, and only that key sees it in the API's log. It is not bought again: restore "
        f"the key and clear the task, resolve it with `airflow-imagen reconcile --imagen-conn-id` and a connection "
        f'that has the key, or set on_lost_answer="resend".',
        client_request_id=intent.client_request_id,
        model=intent.model,
    )
    error.retry_helps = False
    return error


def unknown_outcome(model: str, client_request_id: str, cause: LostAnswerError, error: ImagenError) -> LostAnswerError:
    """Return the error for a lost response whose charge could not be looked up either."""
    return LostAnswerError(
        f"{cause} Whether it was billed could not be looked up: {error}",
        client_request_id=client_request_id,
        inference_id=cause.inference_id,
        model=model,
    )
