"""Airflow's simple auth manager, except that bob may read no DAG."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class RestrictedAuthManager(SimpleAuthManager):
    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        if user.username == "bob" and details is not None and details.id is not None:
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
