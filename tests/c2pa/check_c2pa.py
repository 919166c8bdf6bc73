"""
Content credentials that the C2PA project's own library signed are found, and validate after an image is stored.

``set-up.sh`` runs this in a separate environment without Airflow.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.file_metadata import write_xmp
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.provenance import (
    DIGITAL_SOURCE_TYPE,
    Provenance,
    provenance_packet,
    read_provenance,
)
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

CONVERTIBLE = ("PNG", "JPEG", "WEBP", "AVIF")
MIME_TYPES = {name: f"image/{name.lower()}" for name in (*CONVERTIBLE, "GIF", "TIFF")} | {"SVG": "image/svg+xml"}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>'
MANIFEST = {
    "claim_generator_info": [{"name": "check_c2pa", "version": "1"}],
    "assertions": [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}]},
        }
    ],
}
PROVENANCE = Provenance(ti_key=TaskInstanceKey(dag_id="daily", task_id="draw", run_id="r1"), prompt="a fox")


def draw(image_format: str) -> bytes:
    if image_format == "SVG":
        return SVG
    drawn = BytesIO()
    Image.radial_gradient("L").convert("RGB").save(drawn, format=image_format)
    return drawn.getvalue()


def certificate(name: str, key, *, issuer: str, issuer_key, usage: str) -> bytes:
    """Return a certificate as C2PA wants it for signing, or for the authority that issued that one."""
    names = [
        x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COMMON_NAME, each),
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test"),
            ]
        )
        for each in (name, issuer)
    ]
    is_authority = usage == "key_cert_sign"
    usages = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{**usages, usage: True}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def sign():
    """Return a function that signs an image with a certificate of its own authority."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = {"issuer": "Authority", "issuer_key": authority_key}
    chain = certificate("Signer", key, **authority, usage="digital_signature")
    chain += certificate("Authority", authority_key, **authority, usage="key_cert_sign")
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    info = c2pa.C2paSignerInfo(b"es256", chain, private, None)

    def sign(image_format: str) -> bytes:
        signed = BytesIO()
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(MANIFEST) as builder:
            builder.sign(signer, MIME_TYPES[image_format], BytesIO(draw(image_format)), signed)
        return signed.getvalue()

    return sign


def state(data: bytes, image_format: str) -> str:
    """Return how a reader judges a file: ``Valid``, although nobody trusts our authority, or ``Invalid``."""
    with c2pa.Reader(MIME_TYPES[image_format], BytesIO(data)) as reader:
        return json.loads(reader.json())["validation_state"]


@pytest.mark.parametrize("image_format", MIME_TYPES)
def test_signed_files_are_recognized(sign, image_format):
    assert not has_content_credentials(draw(image_format))
    signed = sign(image_format)
    assert state(signed, image_format) == "Valid"
    assert has_content_credentials(signed)


@pytest.mark.parametrize("target", CONVERTIBLE)
@pytest.mark.parametrize("source", CONVERTIBLE)
def test_whatever_is_stored_the_content_credentials_still_validate(sign, tmp_path, source, target):
    signed = sign(source)
    stored = save_image(
        signed, folder=tmp_path, stem="fox", provenance=PROVENANCE, image_format=target.lower(), thumbnail_pixels=32
    ).file
    original = tmp_path / (stored.original or stored.file_name)
    assert original.read_bytes() == signed
    assert state(original.read_bytes(), source) == "Valid"
    if source == target:
        assert stored.original is None
    else:
        converted = Path(stored.path).read_bytes()
        assert read_provenance(converted)["prompt"] == "a fox"
        with pytest.raises(c2pa.C2paError.ManifestNotFound):
            c2pa.Reader(MIME_TYPES[target], BytesIO(converted))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_metadata_in_a_signed_file_would_have_been_noticed(sign, image_format):
    signed = sign(image_format)
    assert state(write_xmp(signed, inspect_image(signed), provenance_packet(PROVENANCE)), image_format) == "Invalid"
