"""Which DAGs' images a visitor may see, according to Airflow's auth manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import HTTPException

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from fastapi import Request

_ENTITIES: Final = (DagAccessEntity.XCOM, DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE)
"""The parts of a DAG that its page shows."""


class Visitor:
    """
    The user who has sent a request. The methods query Airflow's database, so call them in a thread.

    :param request: the request
    :param user: the user, as authenticated by Airflow
    """

    def __init__(self, request: Request, user: BaseUser) -> None:
        self._request = request
        self._user = user

    def readable_dag_ids(self) -> frozenset[str]:
        """Return the DAGs that the user may read, to which Airflow's API limits lists over all DAGs."""
        return frozenset(get_auth_manager().get_authorized_dag_ids(user=self._user, method="GET"))

    def may_see_images_of(self, dag_id: str) -> bool:
        """Return whether the user may open the page of a DAG, which takes more than reading the DAG."""
        try:
            for entity in _ENTITIES:
                requires_access_dag(method="GET", access_entity=entity, param_dag_id=dag_id)(self._request, self._user)
        except HTTPException as error:
            if error.status_code != 403:
                raise
            return False
        return True
