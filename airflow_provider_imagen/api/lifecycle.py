"""
Whether models can be used today, by what the API says of them. Pure.

Two free answers are read together, as the API's documentation asks for (docs, model-deprecations page, 2026-08): the
list of models says what serves, the list of deprecations explains what is missing from it. A deprecated model leaves
the first list and still serves, so "not listed" alone means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_imagen.api.catalogue import find_model, nearest_models

ModelState = Literal["alive", "superseded", "deprecated", "withdrawn", "unknown"]


@dataclass(frozen=True)
class ModelHealth:
    """
    What the API says of one model.

    :param model: the id asked about
    :param state: ``alive``; ``superseded``: it works under this name and has a new one; ``deprecated``: it works until
        a date; ``withdrawn``: requests end in 404; ``unknown``: in no list, probably a typing error
    :param shutdown_at: ``YYYY-MM-DD``, the day it stopped or will stop, where the API names it
    :param successor: the model that takes its place, where one is named
    :param similar: ids that look like an unknown one
    """

    model: str
    state: ModelState
    shutdown_at: str | None = None
    successor: str | None = None
    similar: tuple[str, ...] = ()

    @property
    def is_fine(self) -> bool:
        """Whether nothing has to be done."""
        return self.state in ("alive", "superseded")

    @property
    def sentence(self) -> str:
        """Say it, and what to do."""
        date = f" on {self.shutdown_at}" if self.shutdown_at else ""
        instead = f"; use {self.successor}" if self.successor else ""
        if self.state == "alive":
            return "alive"
        if self.state == "superseded":
            return f"alive, renamed to {self.successor}" if self.successor else "alive under another name"
        if self.state == "deprecated":
            return f"deprecated, ends{date or ' on a date not named yet'}{instead}"
        if self.state == "withdrawn":
            return f"withdrawn{date}{instead}"
        similar = f"; did you mean {' or '.join(self.similar)}?" if self.similar else ""
        return f"not known to the API{similar}"

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "model": self.model,
            "state": self.state,
            "shutdown_at": self.shutdown_at,
            "successor": self.successor,
            "similar": list(self.similar),
        }


def judge_models(models: Iterable[str], *, listed: Any, retired: Any) -> list[ModelHealth]:
    """
    Judge models by the API's two lists.

    :param models: ids or aliases
    :param listed: rows of ``GET /v1/models``
    :param retired: rows of ``GET /v1/models/deprecations``
    """
    alive = {name for row in listed for name in _names(row)}
    explained: dict[str, Mapping[str, Any]] = {}
    for row in retired:
        for name in _names(row):
            explained.setdefault(name, row)
    return [_judge(model, alive, explained) for model in models]


def _judge(model: str, alive: set[str], explained: Mapping[str, Mapping[str, Any]]) -> ModelHealth:
    row = explained.get(model, {})
    date, successor = row.get("shutdown_at"), row.get("replaced_by")
    known = find_model(model)
    facts: dict[str, Any] = {
        "shutdown_at": date[:10] if isinstance(date, str) else None,
        "successor": successor if isinstance(successor, str) else known.successor if known else None,
    }
    state = row.get("status")
    if state in ("superseded", "deprecated", "withdrawn"):
        return ModelHealth(model, state, **facts)
    if model in alive:
        return ModelHealth(model, "alive")
    if known is not None and known.status in ("deprecated", "withdrawn"):  # too old for the API's list
        return ModelHealth(model, "withdrawn", **facts)
    return ModelHealth(model, "unknown", similar=() if known else tuple(nearest_models(model)))


def _names(row: Any) -> list[str]:
    """List the id and the aliases of a row; what is no row has none."""
    if not isinstance(row, Mapping):
        return []
    aliases = row.get("aliases")
    names = [row.get("id"), *(aliases if isinstance(aliases, list) else ())]
    return [name for name in names if isinstance(name, str)]
