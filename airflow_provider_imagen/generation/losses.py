"""Errors that tell of money without a picture."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import ChargedButLostError, ImagenError, LostAnswerError

if TYPE_CHECKING:
    from airflow_provider_imagen.generation.plan import Unit
    from airflow_provider_imagen.journal.records import Fact


def lost_for_good(
    unit: Unit, *, client_request_id: str, inference_id: str | None, usd: Decimal | None
) -> ChargedButLostError:
    """Make the error for a charge whose picture can be had nowhere; ``usd`` is ``None`` when nobody knows it."""
    cost = f"{usd:.4f} USD" if usd is not None else "an unknown amount"
    return ChargedButLostError(
        f"Charged but lost: {unit.model} billed {cost} and its answer is gone (inference id {inference_id}, client "
        f'request id {client_request_id}). It is not bought again; on_lost_answer="resend" would.',
        inference_id=inference_id,
        client_request_id=client_request_id,
        model=unit.model,
        usd=float(usd) if usd is not None else None,
    )


def known_loss(unit: Unit, *losses: Fact) -> ChargedButLostError:
    """Report again a loss that an earlier try found; the last of several."""
    last = losses[-1]
    usd = last.get("usd")
    return lost_for_good(
        unit,
        client_request_id=last["id"],
        inference_id=last.get("inf"),
        usd=Decimal(usd) if usd is not None else None,
    )


def unknown_charge(unit: Unit, client_request_id: str, cause: LostAnswerError, error: ImagenError) -> LostAnswerError:
    """Make the error for a lost answer of which not even the charge could be found out."""
    return LostAnswerError(
        f"{cause} Whether it was billed could not be looked up: {error}",
        client_request_id=client_request_id,
        inference_id=cause.inference_id,
        model=unit.model,
    )
