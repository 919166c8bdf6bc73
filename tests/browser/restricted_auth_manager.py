"""Airflow's simple auth manager, except that bob may read no DAG, and cat only one."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

MAY_READ: dict[str, set[str]] = {"bob": set(), "cat": {"one_model"}}


class RestrictedAuthManager(SimpleAuthManager):
    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        allowed = MAY_READ.get(user.username)
        if allowed is not None and details is not None and details.id is not None and details.id not in allowed:
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
