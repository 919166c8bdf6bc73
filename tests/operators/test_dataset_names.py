"""How a folder is called by assets and by OpenLineage."""

from __future__ import annotations

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_imagen.operators.dataset_names import host_of, location_of


@pytest.mark.parametrize(
    ("address", "uri", "namespace", "name"),
    [
        ("/data/pictures", "file:///data/pictures", "file", "/data/pictures"),
        ("file:///data/pictures/", "file:///data/pictures", "file", "/data/pictures"),
        ("s3://shop@media/a/b", "s3://media/a/b", "s3://media", "a/b"),
        ("s3://media", "s3://media/", "s3://media", "/"),
        ("gs://media/a", "gs://media/a", "gs://media", "a"),
        ("abfs://shop@media/a", "abfs://media/a", "abfs://media", "a"),
        (
            "s3://media/manual__2026-11-21T10:00:00+00:00",
            "s3://media/manual__2026-11-21T10:00:00+00:00",
            "s3://media",
            "manual__2026-11-21T10:00:00+00:00",
        ),
        ("s3://media/Füchse #1?", "s3://media/F%C3%BCchse%20%231%3F", "s3://media", "Füchse #1?"),
    ],
)
def test_a_folder_is_named_without_the_connection_that_opens_it(
    address: str, uri: str, namespace: str, name: str
) -> None:
    location = location_of(address)

    assert (location.uri, location.namespace, location.name) == (uri, namespace, name)


def test_a_path_objects_string_form_is_understood() -> None:
    assert location_of(str(ObjectStoragePath("file:///data/pictures"))).uri == "file:///data/pictures"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.aimlapi.com/v1", "https://api.aimlapi.com"),
        ("api.aimlapi.com", "https://api.aimlapi.com"),
        ("http://me:secret@127.0.0.1:8080/v1?key=secret", "http://127.0.0.1:8080"),
    ],
)
def test_the_api_is_named_by_its_host_alone(url: str, host: str) -> None:
    assert host_of(url) == host
