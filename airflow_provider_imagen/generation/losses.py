"""Errors that report money without an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import ChargedButLostError, ImagenError, LostAnswerError

if TYPE_CHECKING:
    from decimal import Decimal

    from airflow_provider_imagen.journal.records import ChargeLost


def charge_lost(
    model: str, *, client_request_id: str, inference_id: str | None, usd: Decimal | None
) -> ChargedButLostError:
    """Return the error for a charge whose image cannot be retrieved; ``usd`` is ``None`` when nobody knows it."""
    cost = f"${usd:.4f}" if usd is not None else "an unknown amount"
    return ChargedButLostError(
        f"Charged but lost: {model} billed {cost} and its response is gone (inference id {inference_id}, client "
        f'request id {client_request_id}). It is not bought again; on_lost_answer="resend" would.',
        inference_id=inference_id,
        client_request_id=client_request_id,
        model=model,
        usd=float(usd) if usd is not None else None,
    )


def charge_lost_before(model: str, record: ChargeLost) -> ChargedButLostError:
    """Return the error for a loss that an earlier attempt found."""
    return charge_lost(
        model, client_request_id=record.client_request_id, inference_id=record.inference_id, usd=record.usd
    )


def unknown_outcome(model: str, client_request_id: str, cause: LostAnswerError, error: ImagenError) -> LostAnswerError:
    """Return the error for a lost response of which not even the charge could be found out."""
    return LostAnswerError(
        f"{cause} Whether it was billed could not be looked up: {error}",
        client_request_id=client_request_id,
        inference_id=cause.inference_id,
        model=model,
    )
