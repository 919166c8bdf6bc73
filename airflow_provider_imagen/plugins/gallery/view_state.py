"""The state of a page with a grid: what it shows, and how. All of it is in the page's URL, and only there."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Final, Literal

from fastapi import Query

MAX_QUERY_CHARACTERS: Final = 200
MAX_PAGES: Final = 100_000

Status = Literal["made", "reused", "filtered", "failed", "in_doubt", "missing"]
Order = Literal["prompt", "cost", "-cost", "time", "-time", "name", "-name", "size", "-size"]
PreviewSize = Literal["small", "medium", "large"]
Show = Literal["pictures", "problems"]


@dataclass(frozen=True)
class ViewState:
    """
    The state of a page; its fields are the parameters of the URL.

    :param q: words to search for
    :param model: only what this model was asked for; empty for all models
    :param status: only entries with this status; ``missing`` for all that are not images
    :param label: id of a task, or the title of a task instance; empty for all of them
    :param sort: a leading ``-`` sorts in descending order, as in Airflow's API
    :param size: size of the previews
    :param show: ``problems`` for a page without images
    :param page: page number, from 1
    """

    q: str = ""
    model: str = ""
    status: Status | Literal[""] = ""
    label: str = ""
    sort: Order = "prompt"
    size: PreviewSize = "medium"
    show: Show = "pictures"
    page: int = 1

    @property
    def query(self) -> dict[str, Any]:
        """The parameters that differ from their defaults."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    @property
    def is_filtered(self) -> bool:
        """Whether it leaves something out."""
        return bool(self.q or self.model or self.status or self.label)

    @property
    def is_plain(self) -> bool:
        """Whether it shows everything in prompt order, so that a page can be read without the others."""
        return not self.is_filtered and self.sort == "prompt"

    @property
    def without_filters(self) -> ViewState:
        """The first page of everything, in the same order and size."""
        return ViewState(sort=self.sort, size=self.size, show=self.show)

    def at(self, page: int) -> ViewState:
        """Return another page of the same view."""
        return replace(self, page=page)


def read_view_state(
    q: Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS)] = "",
    model: Annotated[str, Query(max_length=250)] = "",
    status: Status | Literal[""] = "",
    label: Annotated[str, Query(max_length=1000)] = "",
    sort: Order = "prompt",
    size: PreviewSize = "medium",
    show: Show = "pictures",
    page: Annotated[int, Query(ge=1, le=MAX_PAGES)] = 1,
) -> ViewState:
    """Return the state that a URL holds; a dependency of the routes, for which FastAPI checks the values."""
    return ViewState(q=q.strip(), model=model, status=status, label=label, sort=sort, size=size, show=show, page=page)
