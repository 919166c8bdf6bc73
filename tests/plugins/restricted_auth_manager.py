"""An auth manager for tests: Airflow's simple one, in which users can also be restricted to some DAGs."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class RestrictedAuthManager(SimpleAuthManager):
    only: ClassVar[dict[str, set[str]]] = {}
    """By user, the DAGs that they may read."""

    without: ClassVar[dict[str, set[tuple[str, Any]]]] = {}
    """By user, the DAGs of which they may not read something, such as XComs."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        allowed = self.only.get(user.username)
        if allowed is not None and details is not None and details.id is not None and details.id not in allowed:
            return False
        if details is not None and (details.id, access_entity) in self.without.get(user.username, ()):
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
