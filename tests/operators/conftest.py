"""The operator, with the errors of its tries kept."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_imagen._compat import AirflowFailException
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


class Recorded(ImagenGenerateOperator):
    """
    The operator, with the errors of its tries kept.

    Not left to ``on_failure_callback``: Airflow 3.1 does not pass it the error in ``dag.test()``.
    """

    def __init__(self, *, errors: list[BaseException], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.errors = errors

    def execute(self, context: Any) -> list[str]:
        try:
            return super().execute(context)
        except AirflowFailException as error:  # before Airflow 3.3 hopeless errors come in this wrapping
            self.errors.append(error.args[0])
            raise
        except Exception as error:
            self.errors.append(error)
            raise


@pytest.fixture(scope="session")
def recorded() -> type[Recorded]:
    return Recorded
