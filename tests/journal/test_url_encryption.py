from __future__ import annotations

from airflow_provider_imagen.journal.url_encryption import UrlEncryption

SIGNED = "https://cdn.test/a/b.png?Expires=1&Signature=hush"


def test_a_signed_link_is_unreadable_and_comes_back_with_the_same_key():
    sealed = UrlEncryption("key").close(SIGNED)
    assert "cdn.test" not in sealed
    assert "hush" not in sealed
    assert UrlEncryption("key").open(sealed) == SIGNED


def test_another_key_opens_nothing():
    assert UrlEncryption("other").open(UrlEncryption("key").close(SIGNED)) is None
    assert UrlEncryption(None).open(UrlEncryption("key").close(SIGNED)) is None


def test_an_unsigned_link_stays_readable():
    assert UrlEncryption("key").close("https://cdn.test/a.png") == "https://cdn.test/a.png"
    assert UrlEncryption("other").open("https://cdn.test/a.png") == "https://cdn.test/a.png"


def test_a_sealed_link_does_not_hold_the_key():
    assert "5ec2e7" not in UrlEncryption("5ec2e7" * 5).close(SIGNED)


def test_a_damaged_seal_opens_nothing():
    assert UrlEncryption("key").open("sealed:é not base64 !") is None
