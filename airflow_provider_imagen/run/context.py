"""The context that all parts of a run share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption
    from airflow_provider_imagen.run.budget import Budget
    from airflow_provider_imagen.run.plan import Plan
    from airflow_provider_imagen.run.ports import Api, RunOptions, Sink
    from airflow_provider_imagen.run.shared_state import RunState
    from airflow_provider_imagen.run.usage_caps import UsageCaps
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey


class RunContext(Struct, frozen=True, kw_only=True):
    """
    One attempt's plan, ports and shared state.

    :param ti_key: the task instance, which the client request ids name
    :param sink: stores the images; ``None`` if only their URLs are wanted
    :param journal: open; holds what previous attempts did
    :param encryption: encrypts signed URLs for the journal
    :param state: whether to go on, and the results so far
    """

    ti_key: TaskInstanceKey
    plan: Plan
    api: Api
    sink: Sink | None
    journal: Journal
    options: RunOptions
    encryption: UrlEncryption
    state: RunState
    budget: Budget
    usage_caps: UsageCaps
