"""
Determine which models can be used today, from the API's lists or, without them, from the catalogue. Pure.

The API's documentation says to combine two lists, both free (docs, model-deprecations page, 2026-08): the list of
models says what is served, the list of deprecations explains what is missing from it. A deprecated model leaves the
first list but is still served, so "not listed" alone means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any, Literal

from airflow_provider_imagen.catalogue.lookup import Model, find_model, nearest_models

IMAGE_TYPE = "openai/image-generations"
"""``type`` of the image models in the API's list."""

NOTICE = timedelta(days=90)
"""How long before its announced end to start warning about a model."""

ModelState = Literal["alive", "superseded", "deprecated", "withdrawn", "unknown"]
OfflineState = Literal["catalogued", "uncatalogued", "deprecated", "withdrawn"]


@dataclass(frozen=True)
class ModelHealth:
    """
    The availability of one model.

    :param model: the requested id
    :param state: ``alive``; ``superseded``: renamed, but works under this name; ``deprecated``: works until a date;
        ``withdrawn``: retired, requests get a 404; ``unknown``: in no list, probably a typo. Without the API's lists,
        ``catalogued``: in the catalogue; ``uncatalogued``: not in it, so a typo or newer
    :param shutdown_at: ``YYYY-MM-DD``, the day it stopped or will stop, if the API names it
    :param successor: its replacement, if one is named
    :param similar: ids similar to an unknown one
    :param warning: the end its maker announced for a model the API still lists; ``None`` if none is near
    """

    model: str
    state: ModelState | OfflineState
    shutdown_at: str | None = None
    successor: str | None = None
    similar: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def is_fine(self) -> bool:
        """Whether no action is needed."""
        return self.state in ("alive", "superseded", "catalogued")

    @property
    def sentence(self) -> str:
        """The state in words, and what to do about it."""
        date = f" on {self.shutdown_at}" if self.shutdown_at else ""
        instead = f"; use {self.successor}" if self.successor else ""
        if self.state == "alive":
            return "alive"
        if self.state == "catalogued":
            return "in the catalogue"
        if self.state == "superseded":
            return f"alive, renamed to {self.successor}" if self.successor else "alive under another name"
        if self.state == "deprecated":
            return f"deprecated, ends{date or ' on an unknown date'}{instead}"
        if self.state == "withdrawn":
            return f"withdrawn{date}{instead}"
        similar = f"; did you mean {' or '.join(self.similar)}?" if self.similar else ""
        return f"{'not in the catalogue' if self.state == 'uncatalogued' else 'not known to the API'}{similar}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "similar": list(self.similar)}


@dataclass(frozen=True)
class LiveModel:
    """
    State of a model that is not in the catalogue, from the API's lists.

    :param asked: the requested id
    :param id: its canonical id in the API's list; ``None`` if not listed
    :param known_as: the catalogue's id of the same model, sent instead so that all checks apply; ``None`` if new
    :param type: the kind of endpoint that serves it; ``None`` if the list names none
    :param health: its availability by both lists
    """

    asked: str
    id: str | None
    known_as: str | None
    type: str | None
    health: ModelHealth

    @property
    def can_make_images(self) -> bool:
        """Whether an image request can succeed: the model is served, and not by another kind of endpoint."""
        return self.health.state in ("alive", "superseded", "deprecated") and self.type in (None, IMAGE_TYPE)

    @property
    def sentence(self) -> str:
        """Sentence for logs and errors that sums up the API's lists on this model."""
        if self.known_as:
            return f"{self.asked} is {self.known_as} under another name"
        if not self.can_make_images:
            served = f"is served for {self.type}, not for images" if self.type else f"is {self.health.sentence}"
            return f"{self.asked} {served}"
        return f"{self.asked} is newer than the catalogue: its fields are not checked"


def ending_soon(model: str | Model, today: date) -> str | None:
    """
    Return a warning if the end announced by a model's maker is past or within :data:`NOTICE`, else ``None``.

    Complements the API's own lists, which name such ends late or never.

    :param model: an id, an alias or an entry of the catalogue
    """
    known = find_model(model) if isinstance(model, str) else model
    if known is None or known.ends is None:
        return None
    end = date.fromisoformat(known.ends.date)
    if end - today > NOTICE:
        return None
    days = (end - today).days
    when = "that date has passed, so requests may fail" if days <= 0 else f"{days} day{'s' if days != 1 else ''} left"
    instead = f"; use {known.successor}" if known.successor else ""
    return f"its maker retires it on {end} ({known.ends.source}, {known.ends.seen}): {when}{instead}"


def look_up(model_id: str, *, listed: Any, retired: Any) -> LiveModel:
    """
    Return what the API's lists say about an id that is not in the catalogue.

    :param model_id: the id as the author wrote it
    :param listed: rows of ``GET /v1/models``, of every type
    :param retired: rows of ``GET /v1/models/deprecations``
    """
    row: Mapping[str, Any] = next((row for row in listed if model_id in _names(row)), {})
    (health,) = judge_models([model_id], listed=listed, retired=retired)
    names = [model_id, *_names(row), *([health.successor] if health.state == "superseded" and health.successor else [])]
    known = next((model for name in names if (model := find_model(name))), None)
    kind = row.get("type")
    return LiveModel(
        asked=model_id,
        id=_names(row)[0] if row else None,
        known_as=known.id if known else None,
        type=kind if isinstance(kind, str) else None,
        health=health,
    )


def judge_models(models: Iterable[str], *, listed: Any, retired: Any, today: date | None = None) -> list[ModelHealth]:
    """
    Return the availability of models, in the order given, by the API's two lists.

    :param models: ids or aliases
    :param listed: rows of ``GET /v1/models``
    :param retired: rows of ``GET /v1/models/deprecations``
    :param today: reference day for warnings of announced ends; ``None`` for no such warnings
    """
    listed_names = {name for row in listed for name in _names(row)}
    deprecations: dict[str, Mapping[str, Any]] = {}
    for row in retired:
        for name in _names(row):
            deprecations.setdefault(name, row)
    return [_judge(model, listed_names, deprecations, today) for model in models]


def judge_models_offline(models: Iterable[str], *, today: date) -> list[ModelHealth]:
    """
    Return what the catalogue says about models, in the order given.

    :param models: ids or aliases
    :param today: reference day for warnings of announced ends
    """
    return [_judge_offline(model, today) for model in models]


def _judge_offline(model: str, today: date) -> ModelHealth:
    known = find_model(model)
    if known is None:
        return ModelHealth(model, "uncatalogued", similar=tuple(nearest_models(model)))
    if known.status not in ("deprecated", "withdrawn"):
        return ModelHealth(model, "catalogued", warning=ending_soon(known, today))
    end = known.ends.date if known.ends else None
    has_ended = known.status == "withdrawn" or (end is not None and date.fromisoformat(end) <= today)
    return ModelHealth(model, "withdrawn" if has_ended else "deprecated", shutdown_at=end, successor=known.successor)


def _judge(
    model: str, listed: set[str], deprecations: Mapping[str, Mapping[str, Any]], today: date | None
) -> ModelHealth:
    known = find_model(model)
    names = [model, *((known.id, *known.aliases) if known else ())]
    name = next((name for name in names if name in deprecations or name in listed), model)
    row = deprecations.get(name, {})
    shutdown, successor = row.get("shutdown_at"), row.get("replaced_by")
    details: dict[str, Any] = {
        "shutdown_at": shutdown[:10] if isinstance(shutdown, str) else None,
        "successor": successor if isinstance(successor, str) else known.successor if known else None,
    }
    state = row.get("status")
    if state in ("superseded", "deprecated", "withdrawn"):
        return ModelHealth(model, state, **details)
    if name in listed:
        return ModelHealth(model, "alive", warning=ending_soon(known, today) if known and today else None)
    if known is not None and known.status in ("deprecated", "withdrawn"):  # retired too long ago for the API to list it
        return ModelHealth(model, "withdrawn", **details)
    return ModelHealth(model, "unknown", similar=() if known else tuple(nearest_models(model)))


def is_gateway(models: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a list of models has OpenAI's format; unlike the AI/ML API's, its entries have no type."""
    rows = list(models)
    return bool(rows) and all(row.get("object") == "model" and "type" not in row for row in rows)


def _names(row: Any) -> list[str]:
    """Return the id and aliases of a row; empty if malformed."""
    if not isinstance(row, Mapping):
        return []
    aliases = row.get("aliases")
    names = [row.get("id"), *(aliases if isinstance(aliases, list) else ())]
    return [name for name in names if isinstance(name, str)]
