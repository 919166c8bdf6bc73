from __future__ import annotations

from airflow_provider_imagen.journal.url_encryption import UrlEncryption

SIGNED = "https://cdn.test/a/b.png?Expires=1&Signature=hush"


def test_a_signed_url_is_unreadable_and_can_be_decrypted_with_the_same_key():
    encrypted = UrlEncryption("key").encrypt(SIGNED)
    assert "cdn.test" not in encrypted
    assert "hush" not in encrypted
    assert UrlEncryption("key").decrypt(encrypted) == SIGNED


def test_another_key_decrypts_nothing():
    assert UrlEncryption("other").decrypt(UrlEncryption("key").encrypt(SIGNED)) is None
    assert UrlEncryption(None).decrypt(UrlEncryption("key").encrypt(SIGNED)) is None


def test_an_unsigned_url_stays_readable():
    assert UrlEncryption("key").encrypt("https://cdn.test/a.png") == "https://cdn.test/a.png"
    assert UrlEncryption("other").decrypt("https://cdn.test/a.png") == "https://cdn.test/a.png"


def test_an_encrypted_url_does_not_hold_the_key():
    assert "5ec2e7" not in UrlEncryption("5ec2e7" * 5).encrypt(SIGNED)


def test_a_damaged_url_is_not_decrypted():
    assert UrlEncryption("key").decrypt("sealed:é not base64 !") is None
