"""The permissions that routes require, and the parameters in their URLs."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, HTTPException, Query, Request

from airflow_provider_imagen.plugins.gallery.image_ids import MAX_INTEGER
from airflow_provider_imagen.plugins.gallery.view_state import MAX_PAGES, ViewState, read_view_state

may_read = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))
may_read_states = (
    Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN)),
    Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)),
)
may_read_question = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.HITL_DETAIL))


def _may_answer(request: Request, user: GetUserDep) -> bool:
    """Return whether the visitor has Airflow's permission to answer human-in-the-loop tasks of a DAG."""
    try:
        requires_access_dag(method="PUT", access_entity=DagAccessEntity.HITL_DETAIL)(request, user)
    except HTTPException:
        return False
    return True


MayAnswer = Annotated[bool, Depends(_may_answer)]
Id = Annotated[str, Query(min_length=1, max_length=250)]
MapIndex = Annotated[int, Query(ge=-1, le=MAX_INTEGER)]
Index = Annotated[int, Query(ge=0, le=MAX_INTEGER)]
PageNumber = Annotated[int, Query(ge=1, le=MAX_PAGES)]
View = Annotated[ViewState, Depends(read_view_state)]
ImageIds = Annotated[list[str], Query(default_factory=list)]
