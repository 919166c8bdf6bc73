from __future__ import annotations

import json
import time
import zlib
from datetime import UTC, datetime
from io import BytesIO
from itertools import permutations
from xml.dom import minidom
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.storage.convert import convert_image
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.png import iterate_png_chunks
from airflow_provider_imagen.storage.provenance import (
    DIGITAL_SOURCE_TERMS,
    DIGITAL_SOURCE_TYPE,
    NAMESPACE,
    Provenance,
    embed_provenance,
    find_provenance_problem,
    is_ours,
    provenance_packet,
    read_provenance,
)
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

from .conftest import MANIFEST, picture, pixels, with_credentials

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FOREIGN = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<r:Description r:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:q="http://ns.adobe.com/xap/1.0/"'
    b' q:CreatorTool="another tool" q:Rating="5"><q:CreateDate>1999-01-01</q:CreateDate>'
    b'<dc:title><r:Alt><r:li xml:lang="x-default">A &amp; B</r:li></r:Alt></dc:title></r:Description>'
    b"</r:RDF></x:xmpmeta><?xpacket end='w'?>"
)


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = "a description"
    tags[0x0112] = 6
    return tags


def variants():
    """Files of every supported kind, with and without metadata that must not change."""
    text = PngInfo()
    text.add_text("parameters", "steps: 3")
    text.add_itxt("Comment", "späße", zip=True)
    return {
        "png": picture("PNG"),
        "png alpha": picture("PNG", mode="RGBA"),
        "png palette": picture("PNG", mode="P"),
        "png full": picture("PNG", pnginfo=text, icc_profile=PROFILE, exif=exif(), dpi=(72, 72)),
        "jpeg": picture("JPEG"),
        "jpeg full": picture("JPEG", icc_profile=PROFILE, exif=exif(), comment=b"hello", progressive=True),
        "jpeg grey": picture("JPEG", mode="L"),
        "jpeg xmp": picture("JPEG", xmp=FOREIGN, exif=exif()),
        "webp lossy": picture("WEBP"),
        "webp odd": picture("WEBP", size=(61, 47)),
        "webp lossless": picture("WEBP", lossless=True),
        "webp lossless alpha": picture("WEBP", lossless=True, mode="RGBA"),
        "webp alpha": picture("WEBP", mode="RGBA"),
        "webp full": picture("WEBP", icc_profile=PROFILE, exif=exif()),
        "webp xmp": picture("WEBP", xmp=FOREIGN, icc_profile=PROFILE),
    }


VARIANTS = variants()


def embed(data, provenance):
    return embed_provenance(data, inspect_image(data), provenance)


def pillow_xmp(data: bytes) -> bytes:
    with Image.open(BytesIO(data)) as image:
        image.load()
        packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    return packet.encode() if isinstance(packet, str) else packet


@pytest.mark.parametrize("name", VARIANTS)
def test_pixels_and_other_metadata_are_kept_bit_for_bit(name, provenance):
    before = VARIANTS[name]
    marked = embed(before, provenance)
    assert marked.skip_reason is None
    assert pixels(marked.data) == pixels(before)
    with Image.open(BytesIO(before)) as old, Image.open(BytesIO(marked.data)) as new:
        old.load()
        new.load()
        kept = {key: value for key, value in old.info.items() if "xmp" not in key.lower()}
        assert {key: value for key, value in new.info.items() if "xmp" not in key.lower()} == kept
        assert dict(new.getexif()) == dict(old.getexif())
    assert inspect_image(marked.data) == inspect_image(before)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_provenance_round_trips(name, provenance):
    metadata = {"campaign": "Frühling <1>", "page": None}
    found = read_provenance(embed(VARIANTS[name], replace(provenance, metadata=metadata)).data)
    assert found == {
        "metadata": metadata,
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "prompt": provenance.prompt,
        "enhanced_prompt": "a very red fox",
        "model": "imagen-3.0-generate-002",
        "seed": 4_294_967_295,
        "parameters": {"aspect_ratio": "1:1", "num_images": 2},
        "inference_id": "inf-1",
        "created_at": "2026-11-21T10:30:00+00:00",
        "creator_tool": "airflow-provider-imagen",
        "dag_id": "daily",
        "task_id": "draw",
        "run_id": "manual__2026-11-21T10:00:00+00:00",
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_pillow_finds_the_packet(name, provenance):
    packet = pillow_xmp(embed(VARIANTS[name], provenance).data)
    document = minidom.parseString(packet)
    (kind,) = document.getElementsByTagName("Iptc4xmpExt:DigitalSourceType")
    assert kind.firstChild.data == DIGITAL_SOURCE_TYPE


@pytest.mark.parametrize("name", VARIANTS)
def test_embedding_twice_equals_embedding_once(name, provenance):
    once = embed(VARIANTS[name], replace(provenance, prompt="first", seed=1)).data
    twice = embed(once, provenance).data
    assert read_provenance(twice) == read_provenance(embed(VARIANTS[name], provenance).data)
    assert pillow_xmp(twice).count(b"AIPromptInformation>") == 2  # one element, its start and its end


@pytest.mark.parametrize("name", ["png", "jpeg", "webp full"])
def test_nothing_of_an_earlier_image_stays_beside_new_values(name, ti_key):
    full = {
        "prompt": "old",
        "prompt_writer": "Ada",
        "model": "old",
        "model_version": "1",
        "enhanced_prompt": "old",
        "seed": 7,
        "inference_id": "old",
        "map_index": 3,
        "metadata": {"sku": "old"},
        "aspect_ratio": "16:9",
        "negative_prompt": "x" * 5_000,
    }
    once = embed(VARIANTS[name], Provenance(ti_key=ti_key).changed(full)).data
    new = Provenance(ti_key=ti_key, model="new", prompt="new")
    assert read_provenance(embed(once, new).data) == read_provenance(embed(VARIANTS[name], new).data)


@pytest.mark.parametrize("field", ["prompt", "model", "alt_text", "created_at", "digital_source_type", "prompt_writer"])
def test_what_the_author_omits_is_not_left_from_before(field, provenance):
    full = provenance.changed({"prompt_writer": "Ada", "model_version": "1", "alt_text": "a fox"})
    foreign = provenance_packet(full).replace(NAMESPACE.encode(), b"urn:other").replace(b">airflow-", b">another-")
    before = picture("WEBP", xmp=foreign)
    assert not is_ours(read_provenance(before))
    found = read_provenance(embed(before, provenance.changed({field: None})).data)
    assert {field, {"prompt": "prompt_writer", "model": "model_version"}.get(field)}.isdisjoint(found)
    if field != "alt_text":
        assert found["alt_text"] == "a fox"


def test_only_properties_of_ours_make_metadata_ours(provenance):
    foreign = picture("WEBP", xmp=FOREIGN)
    iptc = provenance_packet(provenance).replace(b">airflow-provider-imagen<", b">Adobe Photoshop<")
    assert read_provenance(foreign)
    assert not is_ours(read_provenance(foreign))
    assert not is_ours(read_provenance(picture("WEBP")))
    assert is_ours(read_provenance(picture("WEBP", xmp=iptc)))  # edited by another tool since
    assert is_ours(read_provenance(embed(foreign, provenance).data))


@pytest.mark.parametrize("name", ["jpeg xmp", "webp xmp"])
def test_an_existing_packet_is_kept_and_our_properties_are_replaced(name, provenance):
    packet = pillow_xmp(embed(VARIANTS[name], provenance).data).decode()
    assert 'xml:lang="x-default">A &amp; B</r:li>' in packet
    assert 'q:Rating="5"' in packet
    assert "another tool" not in packet
    assert "1999-01-01" not in packet
    assert packet.count("CreatorTool>") == 2


def test_an_existing_packet_of_a_png_is_found_compressed_or_not(provenance):
    for compressed in (False, True):
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", FOREIGN.decode(), zip=compressed)
        data = embed(picture("PNG", pnginfo=text), provenance).data
        assert b"A &amp; B" in pillow_xmp(data)
        assert [kind for kind, _, _ in iterate_png_chunks(data)].count(b"iTXt") == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"<not xml",
        b"",
        b"\xff\xfe\0",
        b'<!DOCTYPE x [<!ENTITY a "b">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&a;</x:xmpmeta>',
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>",
        b"x" * 2**21,
    ],
)
def test_an_unreadable_packet_is_replaced(broken, provenance):
    assert provenance_packet(provenance, existing=broken) == provenance_packet(provenance)


XMP = "http://ns.adobe.com/xap/1.0/"
PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"


def packet_with(inside: str, attributes: str = "", rdf: str = "rdf") -> str:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><{rdf}:RDF xmlns:{rdf}="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<{rdf}:Description {rdf}:about="" xmlns:p="{PHOTOSHOP}" xmlns:xmp="{XMP}" {attributes}>{inside}'
        f"</{rdf}:Description></{rdf}:RDF></x:xmpmeta>"
    )


@pytest.mark.parametrize(
    "value",
    [
        "a cat&#xA;Negative prompt: dog&#xA;Steps:&#x9;20",
        "a&#10;b&#13;c&#x0D;&#xA;d",
        "&lt;b&gt; &amp; &quot;c&quot; &apos;",
        "xmp:CreatorTool=&quot;x&quot; é 🦊 &#128522;",
        "two  blanks and a ]]&gt;",
    ],
)
@pytest.mark.parametrize("quote", ['"', "'"])
def test_other_tools_properties_are_kept_byte_for_byte(provenance, value, quote):
    element = f"<p:Text>{value}</p:Text><!-- a {value} --><p:More><![CDATA[<{value}>]]></p:More>"
    attribute = f"p:Instructions={quote}{value}{quote}"
    old = packet_with(
        f"{element}<xmp:CreateDate>long ago</xmp:CreateDate>", f"xmp:CreatorTool = {quote}x{quote} {attribute}"
    )
    new = provenance_packet(provenance, existing=old.encode()).decode()
    for kept in (element, attribute):
        assert kept in new
    assert "long ago" not in new
    assert f"xmp:CreatorTool = {quote}x{quote}" not in new
    before, after = (minidom.parseString(text.encode()) for text in (old, new))
    values = [
        document.getElementsByTagName("rdf:Description")[0].getAttributeNS(PHOTOSHOP, "Instructions")
        for document in (before, after)
    ]
    assert values[0] == values[1] != ""
    again = provenance_packet(provenance, existing=new.encode()).decode()
    assert again.count("CreatorTool>") == 2
    assert again.count(element) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("declared", ["", "<?xml version='1.0' encoding='utf-16'?>"])
def test_a_packet_is_read_in_every_encoding(provenance, encoding, declared):
    old = (declared + packet_with("<p:Text>ein Füchslein 🦊</p:Text>", rdf="r")).encode(encoding) + bytes(8)
    new = provenance_packet(provenance, existing=old)
    assert "<p:Text>ein Füchslein 🦊</p:Text>" in new.decode()
    minidom.parseString(new)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE x [<!ENTITY a 'b'>]>",
        "<!-- -->\n<!DOCTYPE x SYSTEM 'file:///etc/passwd'>",
        "<!DOCTYPE x [<!ENTITY a '" + "b" * 1000 + "'><!ENTITY c '" + "&a;" * 1000 + "'>]>",
    ],
)
def test_a_doctype_is_rejected_in_every_encoding(provenance, encoding, doctype):
    existing = (doctype + packet_with("<p:Text>secret</p:Text>")).encode(encoding)
    assert provenance_packet(provenance, existing=existing) == provenance_packet(provenance)


def test_a_property_with_the_default_namespace_or_another_prefix_is_found(provenance):
    inside = (
        f'<CreatorTool xmlns="{XMP}">old</CreatorTool><z:CreateDate xmlns:z="{XMP}"/>'
        "<p:CreatorTool>other</p:CreatorTool>"
    )
    new = provenance_packet(provenance, existing=packet_with(inside).encode()).decode()
    assert "old" not in new
    assert "z:CreateDate" not in new
    assert "<p:CreatorTool>other</p:CreatorTool>" in new


@pytest.mark.parametrize(
    "existing",
    [
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>',
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF>',
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description/></rdf:RDF><!-- end -->\n',
    ],
)
def test_a_packet_without_properties_gets_ours(provenance, existing):
    data = picture("WEBP", xmp=existing.encode())
    assert read_provenance(embed(data, provenance).data)["seed"] == provenance.seed


def crowded(elements: int) -> str:
    return packet_with("<p:a/>" * elements)


@pytest.mark.parametrize(
    "packet",
    [
        crowded(150_000),
        packet_with("<p:a>" * 100_000 + "</p:a>" * 100_000),
        packet_with("".join(f"<p:a{number}/>" for number in range(90_000))),
        packet_with("", "".join(f" p:a{number}='b'" for number in range(60_000))),
        packet_with("\n" * 900_000),
        packet_with("<!---->" * 140_000),
        "<p:a " * 200_000,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_packet_stalls_a_thread(provenance, packet, encoding):
    text = PngInfo()
    text.add(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet.encode(encoding)))
    for data in (picture("PNG", pnginfo=text), picture("WEBP", xmp=packet.encode(encoding)[: 2**20])):
        started = time.process_time()
        read_provenance(data)
        embed(data, provenance)
        assert time.process_time() - started < 3


@pytest.mark.parametrize("name", ["png", "webp"])
def test_a_packet_too_large_to_read_is_left_alone_and_reported(provenance, name):
    if name == "png":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet_with("<p:a>" + "b" * 66_000 + "</p:a>"), zip=True)
        data = picture("PNG", pnginfo=text)
    else:
        data = picture("WEBP", xmp=packet_with("<p:a>" + "b" * 2**20 + "</p:a>").encode())
    marked = embed(data, provenance)
    assert marked.data == data
    assert "too large to read" in marked.skip_reason
    assert read_provenance(data) == {}


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


JPEG_SEGMENTS = {
    "exif": segment(0xE1, exif().tobytes()),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + FOREIGN),
    "icc": segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE),
    "comment": segment(0xFE, b"hello"),
}


@pytest.mark.parametrize("order", permutations(JPEG_SEGMENTS), ids=" ".join)
def test_jpeg_segments_are_found_and_kept_in_any_order(order, provenance):
    plain = picture("JPEG")  # SOI and JFIF are its first 20 bytes
    data = plain[:20] + b"".join(JPEG_SEGMENTS[name] for name in order) + plain[20:]
    marked = embed(data, provenance)
    before, xmp, behind = data.partition(JPEG_SEGMENTS["xmp"])
    assert marked.skip_reason is None
    assert xmp
    assert marked.data.startswith(before)
    assert marked.data.endswith(behind)
    assert marked.data.count(b"http://ns.adobe.com/xap/1.0/\0") == 1
    assert b"A &amp; B" in pillow_xmp(marked.data)
    assert read_provenance(marked.data)["seed"] == provenance.seed


def test_a_jpeg_without_a_packet_gets_one_right_after_its_exif(provenance):
    plain = picture("JPEG")
    data = plain[:20] + b"".join(JPEG_SEGMENTS[name] for name in ("exif", "icc", "comment")) + plain[20:]
    marked = embed(data, provenance).data
    assert marked.startswith(plain[:20] + JPEG_SEGMENTS["exif"] + b"\xff\xe1")
    assert marked.endswith(JPEG_SEGMENTS["icc"] + JPEG_SEGMENTS["comment"] + plain[20:])


@pytest.mark.parametrize("odd", ["signature", "several pictures"])
@pytest.mark.parametrize("place", range(5))
def test_a_segment_that_forbids_changes_to_a_jpeg_is_found_anywhere(odd, place, provenance):
    plain = picture("JPEG")
    manifest = b"JP\0\1\0\0\0\1" + MANIFEST
    parts = list(JPEG_SEGMENTS.values())
    parts.insert(place, segment(0xEB, manifest) if odd == "signature" else segment(0xE2, b"MPF\0" + bytes(40)))
    data = plain[:20] + b"".join(parts) + plain[20:]
    marked = embed(data, provenance)
    assert marked.data == data
    assert marked.skip_reason


def test_the_fields_that_an_author_gives_round_trip(provenance):
    given = {"prompt_writer": "Ada <L>", "model_version": "2.1", "alt_text": 'A fox\nin "snow" & ice 🦊'}
    for data in (VARIANTS["png"], VARIANTS["jpeg xmp"], VARIANTS["webp full"]):
        found = read_provenance(embed(data, provenance.changed(given)).data)
        assert {name: found[name] for name in given} == given
    assert {*given}.isdisjoint(read_provenance(embed(VARIANTS["png"], provenance).data))


IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
IPTC_CORE = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
ALT_TEXTS = (
    '<c:AltTextAccessibility><rdf:Alt><rdf:li xml:lang="de">Fuchs</rdf:li><rdf:li xml:lang="x-default">{}</rdf:li>'
    '<rdf:li xml:lang="fr">renard</rdf:li></rdf:Alt></c:AltTextAccessibility>'
)


def marked_with(inside: str, provenance) -> str:
    namespaces = f'xmlns:e="{IPTC}" xmlns:c="{IPTC_CORE}"'
    return provenance_packet(provenance, existing=packet_with(inside, namespaces).encode()).decode()


@pytest.mark.parametrize(
    "source_type",
    [
        "<e:DigitalSourceType>{0}digitalCapture</e:DigitalSourceType>",
        '<e:DigitalSourceType rdf:resource="{0}digitalCapture"/>',
        "<e:DigitalSourceType><rdf:Bag><rdf:li>{0}digitalCapture</rdf:li></rdf:Bag></e:DigitalSourceType>",
        "<e:DigitalSourcefileType>{0}digitalCapture</e:DigitalSourcefileType>",
        "<e:DigitalSourceType>{0}digitalCapture</e:DigitalSourceType>" * 2,
    ],
)
def test_an_existing_source_type_never_contradicts_ours(source_type, provenance):
    existing = source_type.format("http://cv.iptc.org/newscodes/digitalsourcetype/")
    packet = marked_with(existing, provenance)
    assert "digitalCapture" not in packet
    assert packet.count("digitalsourcetype/") == 1
    assert existing in marked_with(existing, replace(provenance, digital_source_type=None))


def test_an_existing_alternative_text_is_replaced_with_its_translations_or_kept_with_them(provenance):
    existing = ALT_TEXTS.format("a dog")
    packet = marked_with(existing, replace(provenance, alt_text="a fox"))
    assert (packet.count("x-default"), packet.count("<rdf:li")) == (1, 1)
    assert "a fox" in packet
    assert existing in marked_with(existing, provenance)


@pytest.mark.parametrize(
    ("alternatives", "expected"),
    [
        (ALT_TEXTS.format("a dog"), "a dog"),
        (ALT_TEXTS.format(""), ""),
        (ALT_TEXTS.replace("x-default", "en").format("a dog"), None),
        ("<c:AltTextAccessibility>a dog</c:AltTextAccessibility>", "a dog"),
        ("<c:AltTextAccessibility><rdf:Bag><rdf:li>a dog</rdf:li></rdf:Bag></c:AltTextAccessibility>", None),
    ],
)
def test_the_default_of_an_alternative_text_is_read(alternatives, expected):
    packet = packet_with(alternatives, f'xmlns:c="{IPTC_CORE}"')
    assert read_provenance(picture("WEBP", xmp=packet.encode())).get("alt_text") == expected


def test_a_jpeg_with_several_packets_ends_up_with_one(provenance):
    plain = picture("JPEG")
    data = plain[:20] + JPEG_SEGMENTS["xmp"] + JPEG_SEGMENTS["icc"] + JPEG_SEGMENTS["xmp"] * 2 + plain[20:]
    marked = embed(data, provenance).data
    assert marked.count(b"http://ns.adobe.com/xap/1.0/\0") == 1
    assert marked.endswith(JPEG_SEGMENTS["icc"] + plain[20:])
    assert read_provenance(marked)["seed"] == provenance.seed


@pytest.mark.parametrize("term", DIGITAL_SOURCE_TERMS)
@pytest.mark.parametrize(
    "start", ["", "http://cv.iptc.org/newscodes/digitalsourcetype/", "https://cv.iptc.org/newscodes/digitalsourcetype/"]
)
def test_a_source_type_is_given_as_a_term_or_its_uri(term, start, provenance):
    changes = {"digital_source_type": f"{start}{term}"}
    assert find_provenance_problem(changes) is None
    expected = f"http://cv.iptc.org/newscodes/digitalsourcetype/{term}"
    assert provenance.changed(changes).digital_source_type == expected


@pytest.mark.parametrize(
    "term", ["", "softwareImage", "TrainedAlgorithmicMedia", "http://example.com/print", 7, ["print"]]
)
def test_an_unknown_source_type_is_a_problem_that_lists_the_terms(term):
    problem = str(find_provenance_problem({"digital_source_type": term}))
    assert problem.startswith(f"provenance['digital_source_type']={term!r}: ")
    assert all(known in problem for known in DIGITAL_SOURCE_TERMS)


FIELDS = sorted({*Provenance.__struct_fields__, *TaskInstanceKey.__struct_fields__} - {"ti_key", "omitted"})
VALUES = ["x", 7, True, False, 1.5, [], ["a"], {}, {"a": "b"}, datetime(2026, 1, 1, tzinfo=UTC), b"x", object]
VALID = {
    "created_at": ["x", datetime(2026, 1, 1, tzinfo=UTC)],
    "seed": [7],
    "map_index": [7],
    "parameters": [{}, {"a": "b"}],
    "metadata": [True, False, {}, {"a": "b"}],
    "digital_source_type": [],
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, *VALUES], ids=repr)
def test_a_field_takes_only_values_that_can_be_embedded(field, value, provenance):
    problem = find_provenance_problem({"campaign": 7, field: value})
    if value is None or any(
        value is valid or value == valid for valid in VALID.get(field, ["x"]) if type(value) is type(valid)
    ):
        assert problem is None
        assert embed(VARIANTS["png"], provenance.changed({field: value})).skip_reason is None
    else:
        assert str(problem).startswith(f"provenance[{field!r}]=")
        assert "allowed" in str(problem)


ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize("value", [10**5_000, ENDLESS], ids=["huge number", "list that contains itself"])
@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("seed", lambda value: value),
        ("campaign", lambda value: value),
        ("metadata", lambda value: {"sku": value}),
        ("parameters", lambda value: {"a": [value]}),
    ],
)
def test_a_value_that_cannot_be_written_is_a_problem_wherever_it_is(name, wrap, value):
    assert str(find_provenance_problem({name: wrap(value)})).startswith(f"provenance[{name!r}]=")


def test_fields_of_the_authors_own_take_any_value():
    assert all(find_provenance_problem({"campaign": value, 7: value}) is None for value in VALUES)


@pytest.mark.parametrize("order", permutations(range(4)), ids=str)
def test_our_properties_are_replaced_and_others_kept_in_any_order(order, provenance):
    parts = [
        "<p:Text>kept</p:Text>",
        "<xmp:CreatorTool>old tool</xmp:CreatorTool>",
        "<xmp:CreateDate>long ago</xmp:CreateDate>",
        "<p:More><![CDATA[<xmp:CreateDate>kept</xmp:CreateDate>]]></p:More>",
    ]
    existing = packet_with("".join(parts[number] for number in order))
    new = provenance_packet(provenance, existing=existing.encode()).decode()
    assert [part in new for part in parts] == [True, False, False, True]
    assert (new.index(parts[0]) < new.index(parts[3])) == (order.index(0) < order.index(3))
    assert "old tool" not in new
    assert "long ago" not in new


@pytest.mark.parametrize("name", ["png", "jpeg full", "webp lossless"])
def test_a_signed_file_is_left_alone_and_reported(name, provenance):
    signed = with_credentials(VARIANTS[name])
    marked = embed(signed, provenance)
    assert marked.data == signed
    assert "C2PA signature" in marked.skip_reason


@pytest.mark.parametrize("image_format", ["AVIF", "GIF", "TIFF", "BMP"])
def test_unsupported_formats_are_returned_unchanged_and_reported(image_format, provenance):
    data = picture(image_format)
    marked = embed(data, provenance)
    assert marked.data is data
    assert image_format in marked.skip_reason
    assert read_provenance(data) == {}


def test_a_file_with_several_images_is_left_alone(provenance):
    target = BytesIO()
    image = Image.new("RGB", (20, 20), "red")
    image.save(target, format="MPO", save_all=True, append_images=[image])
    marked = embed(target.getvalue(), provenance)
    assert marked.data == target.getvalue()
    assert "several images" in marked.skip_reason


def test_an_avif_we_encode_carries_the_packet(provenance):
    data = convert_image(picture(), image_format="avif", xmp=provenance_packet(provenance))
    assert read_provenance(data)["prompt"] == provenance.prompt


def test_a_long_prompt_is_shortened_only_where_the_format_requires_it(provenance):
    long = replace(provenance, prompt="ß" * 60_000, enhanced_prompt="x" * 60_000)
    assert read_provenance(embed(VARIANTS["png"], long).data)["prompt"] == long.prompt
    found = read_provenance(embed(VARIANTS["jpeg"], long).data)
    assert len(found["prompt"]) == 8_000
    assert found["prompt"].endswith("ß…")
    assert found["seed"] == long.seed


@pytest.mark.parametrize("character", ["x", "🦊", "&", '"', "\n"])
def test_the_most_metadata_that_an_item_may_have_fits_into_a_jpeg_with_a_long_prompt(provenance, character):
    metadata = {f"{number:064}": character * 5_000 if number < 2 else None for number in range(64)}
    full = replace(provenance, prompt="ß" * 60_000, enhanced_prompt="x" * 60_000, metadata=metadata)
    assert read_provenance(embed(VARIANTS["jpeg"], full).data)["metadata"] == metadata


def test_a_jpeg_without_room_for_the_packet_is_left_alone(provenance):
    full = FOREIGN.replace(b"A &amp; B", b"y" * 64_700)
    data = picture("JPEG", xmp=full)
    marked = embed(data, provenance)
    assert marked.data == data
    assert "no room" in marked.skip_reason


def test_secrets_and_image_data_are_removed_from_the_parameters(provenance):
    parameters = {
        "image_url": "https://user:SECRET@host/a.png?X-Amz-Signature=SECRET#SECRET",
        "image_urls": ["data:image/png;base64," + "SECRET" * 1000, "HTTPS://host/b.png?token=SECRET"],
        "nested": {"mask": "iVBOR" + "A" * 100_000},
        "plain": "a hint, with commas? yes",
    }
    data = embed(VARIANTS["png"], replace(provenance, parameters=parameters)).data
    assert b"SECRET" not in data
    found = read_provenance(data)["parameters"]
    assert found["image_url"] == "https://host/a.png"
    assert found["image_urls"] == ["data:image/png;base64,… (6022 characters)", "https://host/b.png"]
    assert len(found["nested"]["mask"]) == 2_000
    assert found["plain"] == "a hint, with commas? yes"
    assert read_provenance(data)["shortened_parameters"] == ["image_url", "image_urls", "nested"]


@pytest.mark.parametrize(
    ("name", "parameters", "shortened"),
    [
        ("png", {"negative_prompt": "x" * 2_000, "colors": [{"r": 1}], "sizes": (1, 2), "hint": "…"}, None),
        ("png", {"negative_prompt": "x" * 2_001, "steps": 9}, ["negative_prompt"]),
        ("png", {"loras": [{"path": "https://host/a.safetensors?token=SECRET"}], "steps": 9}, ["loras"]),
        ("png", {"a": "x" * 1_500, **{f"b{number}": "x" * 1_500 for number in range(20)}}, "all"),
        ("jpeg", {"negative_prompt": "x", "steps": 9}, "all"),
    ],
)
def test_the_packet_names_the_parameters_that_it_does_not_hold_in_full(name, parameters, shortened, provenance):
    prompt = "ß" * 60_000 if name == "jpeg" else "a fox"
    found = read_provenance(embed(VARIANTS[name], replace(provenance, prompt=prompt, parameters=parameters)).data)
    assert found.get("shortened_parameters") == (sorted(parameters) if shortened == "all" else shortened)


def test_too_many_parameters_are_reduced_to_their_names(provenance):
    many = {f"field{number}": "x" * 1_000 for number in range(50)}
    found = read_provenance(embed(VARIANTS["png"], replace(provenance, parameters=many)).data)["parameters"]
    assert found == dict.fromkeys(sorted(many), "…")


def test_unknown_values_are_not_written(provenance):
    bare = replace(provenance, seed=None, enhanced_prompt=None, parameters={}, inference_id=None)
    found = read_provenance(embed(VARIANTS["png"], bare).data)
    assert not {"seed", "enhanced_prompt", "parameters", "inference_id", "map_index"} & found.keys()


def test_zero_is_a_valid_seed_and_map_index(provenance):
    mapped = replace(provenance, seed=0, ti_key=replace(provenance.ti_key, map_index=0))
    found = read_provenance(embed(VARIANTS["png"], mapped).data)
    assert (found["seed"], found["map_index"]) == (0, 0)


def test_the_same_provenance_gives_the_same_bytes(provenance):
    assert embed(VARIANTS["png"], provenance) == embed(VARIANTS["png"], provenance)


nasty = st.text(st.characters(), max_size=200) | st.text(
    st.sampled_from("\0\x01\x08\x0b\x1f\x7f\x85\u2028\ufffe\uffff\ud800\udfff\r\n\t<>&\"']]>🦊"), max_size=40
)


@settings(max_examples=200, deadline=None)
@given(prompt=nasty, enhanced=st.none() | nasty, value=nasty, name=st.sampled_from(sorted(VARIANTS)))
def test_no_text_produces_invalid_xml(prompt, enhanced, value, name):
    made = Provenance(
        ti_key=TaskInstanceKey(dag_id=value, task_id="t", run_id=prompt),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        model="m",
        prompt=prompt,
        enhanced_prompt=enhanced,
        parameters={"hint": value},
    )
    data = embed(VARIANTS[name], made).data
    minidom.parseString(pillow_xmp(data))
    found = read_provenance(data)
    assert found.get("prompt", "") == writable(prompt)
    assert found.get("enhanced_prompt", "") == writable(enhanced or "")
    assert json.loads(json.dumps(found["parameters"]))
    assert pixels(data) == pixels(VARIANTS[name])


def writable(text: str) -> str:
    """Return what XML 1.0 preserves of a text: its rules for characters and line ends applied."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")

    def allowed(number: int) -> bool:
        return (
            number in (0x9, 0xA)
            or 0x20 <= number <= 0xD7FF
            or 0xE000 <= number <= 0xFFFD
            or 0x10000 <= number <= 0x10FFFF
        )

    return "".join(character if allowed(ord(character)) else "\ufffd" for character in lines)


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("padding", [b"\0", bytes(512), b"<!-- cached -->"])
def test_padding_after_the_image_is_kept_in_place(name, padding, provenance):
    marked = embed(VARIANTS[name] + padding, provenance)
    assert marked.data == embed(VARIANTS[name], provenance).data + padding
    assert read_provenance(marked.data)["seed"] == provenance.seed


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from([FOREIGN, packet_with("<xmp:CreateDate/><p:a b='>'/>", "xmp:CreatorTool='>\"'").encode()]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from([*"<>\"' \0", "", "/>", "&#13;", "</r:RDF>"]))),
)
def test_a_merged_packet_is_always_valid_xml(start, changes):
    existing = start
    for place, text in changes:
        place %= len(existing)
        existing = existing[:place] + text.encode() + existing[place + 1 :]
    made = Provenance(ti_key=TaskInstanceKey(dag_id="d", task_id="t", run_id="r"), model="m", prompt="p")
    merged = provenance_packet(made, existing=existing)
    root = ElementTree.fromstring(merged)
    assert len(list(root.iter(f"{{{XMP}}}CreatorTool"))) == 1
    data = embed(picture("WEBP", xmp=existing), made).data
    assert read_provenance(data)["creator_tool"] == "airflow-provider-imagen"


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(VARIANTS)),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 200),
)
def test_damaged_files_are_read_without_an_error(name, damage, cut):
    data = bytearray(VARIANTS[name])
    for place, value in damage:
        data[place % min(len(data), 400)] = value
    assert isinstance(read_provenance(bytes(data[: len(data) - cut])), dict)
