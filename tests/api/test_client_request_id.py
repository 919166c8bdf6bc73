"""Client request ids name the DAG and the task, whatever their names are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.api.client_request_id import (
    HOOK_REQUEST,
    RequestSource,
    new_client_request_id,
    read_client_request_id,
    readable_names,
)

FINGERPRINT = "0123456789abcdef0123"

names = st.text(st.characters(exclude_characters=":\0"), max_size=250)  # DAG and task ids have no colon
plain_names = st.from_regex(r"[A-Za-z0-9._-]{1,41}", fullmatch=True)


def test_an_id_can_be_read_by_people() -> None:
    client_request_id = new_client_request_id(dag_id="postcards", task_id="evening.paint", request=FINGERPRINT)

    assert re.fullmatch(r"imagen:postcards:evening\.paint:0123456789abcdef0123:[0-9a-f]{16}", client_request_id)


@given(names, names)
def test_the_api_accepts_the_id_of_any_task(dag_id: str, task_id: str) -> None:
    client_request_id = new_client_request_id(dag_id=dag_id, task_id=task_id, request=FINGERPRINT)

    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", client_request_id)
    source = read_client_request_id(client_request_id)
    assert source is not None
    assert (source.dag_id or "", source.task_id or "") == readable_names(dag_id, task_id)


@given(plain_names, plain_names)
def test_names_that_fit_stay_as_they_are(dag_id: str, task_id: str) -> None:
    assert readable_names(dag_id, task_id) == (dag_id, task_id)


def test_a_short_name_leaves_its_room_to_the_other() -> None:
    assert readable_names("d" * 77, "paint") == ("d" * 77, "paint")
    assert readable_names("dag", "t" * 79) == ("dag", "t" * 79)


@pytest.mark.parametrize("kind", ["-europe", "-überall", "é", "x" * 200])
def test_names_that_differ_only_in_what_is_cut_or_replaced_stay_apart(kind: str) -> None:
    similar = [f"{'a' * 60}{kind}{middle}{'b' * 60}" for middle in ("", "é", "è", "x", "y")]
    shown = {readable_names(name, name) for name in similar}

    assert len(shown) == len(similar)
    assert all(dag.startswith("aaaaaaaa") and dag.endswith("bbbbbbbb") for dag, _ in shown)


def test_equal_requests_of_a_task_have_different_ids() -> None:
    assert len({new_client_request_id(dag_id="d", task_id="t", request=FINGERPRINT) for _ in range(50)}) == 50


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("imagen:dag:task:0123456789abcdef0123:0123456789abcdef", RequestSource("dag", "task", is_hook=False)),
        ("imagen:dag:task:hook:0123456789abcdef", RequestSource("dag", "task", is_hook=True)),
        ("imagen:::hook:0123456789abcdef", RequestSource(None, None, is_hook=True)),
        ("imagen.0123456789abcdef0123.0123456789abcdef", RequestSource(None, None, is_hook=False)),
        ("imagen.hook.0123456789abcdef", RequestSource(None, None, is_hook=True)),
        ("imagen:dag:task:0123:0123456789abcdef\n", None),
        ("imagen:dag:task", None),
        ("customer-42", None),
        ("", None),
        (None, None),
    ],
)
def test_ids_of_this_and_earlier_versions_are_recognized(text: str | None, source: RequestSource | None) -> None:
    assert read_client_request_id(text) == source


def test_calls_of_the_hook_outside_a_task_name_no_task() -> None:
    assert new_client_request_id(dag_id="", task_id="", request=HOOK_REQUEST).startswith("imagen:::hook:")
