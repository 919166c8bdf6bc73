"""Say which task instance made a picture."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

from msgspec import Struct


class Origin(Struct, frozen=True, kw_only=True, dict=True):
    """
    The task instance a picture comes from, the same in all its tries.

    :param dag_id: id of the DAG
    :param task_id: id of the task, with its groups
    :param run_id: id of the DAG run
    :param map_index: number of the mapped task instance, -1 when the task is not mapped
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    @cached_property
    def identity(self) -> str:
        """Ten letters and digits that stand for this task instance, and for no other."""
        text = json.dumps([self.dag_id, self.task_id, self.run_id, self.map_index])
        return hashlib.sha256(text.encode()).hexdigest()[:10]
