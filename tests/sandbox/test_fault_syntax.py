from __future__ import annotations

import re

import pytest

from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.sandbox.fault_syntax import describe_kinds, format_fault, parse_fault
from airflow_provider_imagen.sandbox.faults import KINDS


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("reset", Fault("reset")),
        ("reset:billed=true,logged=false", Fault("reset", billed=True, logged=False)),
        ("status:status=429,retry_after=0.5,times=3", Fault("status", status=429, retry_after=0.5, times=3)),
        ("slow:seconds=2,times=null", Fault("slow", seconds=2, times=None)),
        ("slow:path=/v2/logs,probability=0.5", Fault("slow", path="/v2/logs", probability=0.5)),
        (
            "status:message=Sorry, not today: closed,status=503",
            Fault("status", message="Sorry, not today: closed", status=503),
        ),
        ("status:prompt=true,message=500", Fault("status", prompt="true", message="500")),
        ("redirect:location=http://127.0.0.1/?a=b", Fault("redirect", location="http://127.0.0.1/?a=b")),
        ("none:value=null", Fault("none", value="null")),
        ("cut_image:prompt=", Fault("cut_image", prompt="")),
    ],
)
def test_a_fault_can_be_written_on_one_line(text, fault):
    assert parse_fault(text) == fault
    assert parse_fault(format_fault(fault)) == fault


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_are_listed_as_they_can_be_written(kind):
    (listed,) = [parameters for name, _, _, parameters in describe_kinds() if name == kind]
    given = [parameter for parameter in listed.split(", ") if "=" in parameter]
    given += ["model=recraft-v3"] if kind == "withdrawn" else []
    fault = parse_fault(f"{kind}:{','.join(given)}" if given else kind)

    assert {name: fault.setting(name) for name in KINDS[kind].parameters} == KINDS[kind].parameters
    assert {parameter.partition("=")[0] for parameter in listed.split(", ")} - {""} == {*KINDS[kind].parameters}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "kind=''; allowed: status, upstream_4xx, "),
        ("statsu", "expired; did you mean status?"),
        ("Reset", "expired; did you mean reset?"),
        ("reset:", "'' is not a parameter; allowed: NAME=VALUE"),
        ("reset:billed", "'billed' is not a parameter; allowed: NAME=VALUE"),
        ("reset:bil led=true", "'bil led=true' is not a parameter; allowed: NAME=VALUE"),
        ("reset:kind=slow", "kind must not be given twice"),
        ("reset:times=1,times=2", "times must not be given twice"),
        ("reset:biled=true", "A 'reset' fault has no biled; its parameters: billed, logged (and times, "),
        ("reset:biled=true", "did you mean billed?"),
        ("reset:seconds=1", "A 'reset' fault has no seconds; its parameters: billed, logged"),
        ("nsfw:count=1", "A 'nsfw' fault has no count; its parameters: none (and times, "),
        ("reset:billed=yes", "billed='yes'; allowed: true, false"),
        ("reset:times=often", "times='often'; allowed: a whole number, 0 or more"),
        ("reset:times=-1", "times=-1; allowed: 0 or more"),
        ("reset:times=1.5", "times='1.5'; allowed: a whole number, 0 or more"),
        (f"reset:times={'9' * 400}", "allowed: 0 or more"),
        (f"reset:times={'9' * 5000}", "allowed: a whole number, 0 or more"),
        ("slow:seconds=nan", "seconds=nan; allowed: 0 or more"),
        ("slow:seconds=soon", "seconds='soon'; allowed: a number, 0 or more"),
        ("status:status=1000", "status=1000; allowed: 100 to 599"),
        ("status:envelope=odl", "envelope='odl'; allowed: old, problem; did you mean old?"),
        ("status:on=downloads", "on='downloads'; allowed: generate, download; did you mean download?"),
        ("fewer:on=download", "A 'fewer' fault does not apply to 'download'; allowed: generate"),
        ("withdrawn", "A 'withdrawn' fault needs model"),
    ],
)
def test_an_invalid_fault_names_field_value_and_what_is_allowed(text, says):
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        parse_fault(text)

    assert "\n" not in str(raised.value)
