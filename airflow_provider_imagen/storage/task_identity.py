"""The key of the task instance that generated an image, and its short hash."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

from msgspec import Struct


class TaskInstanceKey(Struct, frozen=True, kw_only=True, dict=True):
    """
    A task-instance key; the same for all attempts.

    :param dag_id: id of the DAG
    :param task_id: id of the task, including its task groups
    :param run_id: id of the DAG run
    :param map_index: index of the mapped task instance, -1 if the task is not mapped
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    @cached_property
    def identity(self) -> str:
        """Short hash of the key: ten hex digits, unique for practical purposes."""
        text = json.dumps([self.dag_id, self.task_id, self.run_id, self.map_index])
        return hashlib.sha256(text.encode()).hexdigest()[:10]
