from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import airflow_provider_imagen
from airflow_provider_imagen.download.ip_addresses import (
    canonical_host,
    is_private_address,
    is_public_address,
    literal_address,
    parse_host,
)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.9",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::200:5efe:192.168.0.1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_private_and_special_addresses_are_not_public(address):
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2606:4700::1111",
        "2a00:1450:4001::200e",
        "2606:4700::5efe:8.8.8.8",
    ],
)
def test_internet_addresses_are_public(address):
    assert is_public_address(address)


@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_address_that_the_standard_library_calls_special_is_public(number):
    address = IPv4Address(number)
    assert address.is_global or not is_public_address(str(address))


@given(st.integers(0, 2**128 - 1))
def test_no_ipv6_address_that_the_standard_library_calls_special_is_public(number):
    address = IPv6Address(number)
    assert address.is_global or not is_public_address(str(address))


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_embedded_in_ipv6_is_judged_as_itself(number):
    plain = is_public_address(str(IPv4Address(number)))
    assert is_public_address(str(IPv6Address(0xFFFF << 32 | number))) == plain
    assert is_public_address(str(IPv6Address(0x64FF9B << 96 | number))) == plain


def test_a_name_is_not_an_address():
    with pytest.raises(ValueError, match="localhost"):
        is_public_address("localhost")


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("[::1]", "::1"),
        ("::ffff:7f00:1", "::ffff:7f00:1"),
    ],
)
def test_every_spelling_of_a_literal_address_is_recognized(host, meant):
    literal = literal_address(host)
    assert literal is not None
    assert ip_address(literal) == ip_address(meant)


@pytest.mark.parametrize("host", ["", ".", "cdn.example", "1e100.example", "10.example", "١٢٧.0.0.1"])
def test_names_are_not_literal_addresses(host):
    assert literal_address(host) is None


def test_judging_addresses_needs_only_the_standard_library():
    code = (
        "import sys; import airflow_provider_imagen.download.ip_addresses; "
        "print(sorted({'requests', 'urllib3', 'airflow', 'PIL', 'tenacity'} & set(sys.modules)))"
    )
    root = Path(airflow_provider_imagen.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "100.64.0.1", "127.0.0.1", "172.31.255.255", "192.168.1.1", "198.18.0.7"),
        *("::1", "fd00::7", "fc00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_addresses_of_private_networks_can_be_allowed(address):
    assert is_private_address(address)
    assert not is_public_address(address)


METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254")


@pytest.mark.parametrize(
    "address",
    [
        *METADATA,
        *("fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fe80::1", "fe80::a9fe:a9fe", "fe80::1%eth0"),
        *("::ffff:169.254.169.254", "::ffff:100.100.100.200", "::ffff:0:169.254.169.254", "::169.254.169.254"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b::6464:64c8"),
        *("2002:a9fe:a9fe::", "2002:a00:1::1", "2001::a9fe:a9fe", "fd12::5efe:169.254.169.254", "fd64::a9fe:a9fe"),
        *("0.0.0.0", "::", "192.0.2.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "fec0::1"),
        *("8.8.8.8", "2606:4700::1"),
    ],
)
def test_link_local_metadata_and_tunnelled_addresses_can_never_be_allowed(address):
    assert not is_private_address(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_never_both_public_and_private(ip):
    assert not (is_public_address(str(ip)) and is_private_address(str(ip)))
    assert is_private_address(f"::ffff:{ip}") == is_private_address(str(ip))
    assert not is_private_address(f"64:ff9b::{ip}")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("cdn.internal", "cdn.internal", None),
        (" CDN.Internal.:9000 ", "cdn.internal", 9000),
        ("10.0.3.7:9000", "10.0.3.7", 9000),
        ("127.1", "127.0.0.1", None),
        ("[fd00::7]:9000", "fd00::7", 9000),
        ("[fd00:0::7]", "fd00::7", None),
        ("fd00::7", "fd00::7", None),
        ("bücher.internal", "xn--bcher-kva.internal", None),
    ],
)
def test_a_host_is_read_with_or_without_a_port(text, host, port):
    assert parse_host(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "http://cdn.internal",
        "cdn.internal/x",
        "10.0.0.0/8",
        "*",
        "me@cdn",
        "cdn:abc",
        "cdn:99999",
        "",
        ":80",
        "a b",
        "c?d",
    ],
)
def test_an_invalid_host_is_rejected(text):
    with pytest.raises(ValueError, match=r"host is allowed|[Pp]ort"):
        parse_host(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "127.0.0.1."])
def test_all_spellings_of_a_host_are_normalized_to_one(host):
    assert canonical_host(host) == "127.0.0.1"
