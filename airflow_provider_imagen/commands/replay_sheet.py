"""A page that compares the images of a sample: a row for each prompt, a column for each model."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from msgspec import Struct

from airflow_provider_imagen.commands.past_requests import MAX_IMAGE_BYTES
from airflow_provider_imagen.commands.replay_quote import RejectedRequest
from airflow_provider_imagen.commands.terminal import printable
from airflow_provider_imagen.exceptions import BadImageError, StorageError
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.storage.atomic_write import read_bytes, write_bytes_atomically
from airflow_provider_imagen.storage.convert import make_thumbnail
from airflow_provider_imagen.storage.paths import address_of, descend, stays_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_imagen.commands.past_requests import PastRequest
    from airflow_provider_imagen.commands.replay_quote import SampleCell, SampleRow
    from airflow_provider_imagen.run.results import FinishedImage, RunResult
    from airflow_provider_imagen.storage.paths import StoragePath

SHEET_NAME: Final = "replay.html"
PREVIEW_PIXELS: Final = 384

_TEXT_CHARACTERS: Final = 5_000


class _Cell(Struct, frozen=True):
    """
    An image on the page, or why there is none.

    :param text: its cost, or the reason
    :param usd: its cost, 0 if there is no image or the cost is unknown
    :param preview: a small image as a ``data:`` URI; empty if there is none
    :param link: URL of the image, relative to the page; empty if it is elsewhere
    """

    text: str
    usd: float = 0.0
    preview: str = ""
    link: str = ""


def write_sheet(
    folder: StoragePath, *, past_folder: StoragePath, sample: Sequence[SampleRow], result: RunResult, owner: str
) -> str:
    """
    Write the page and return its location. It is one file that loads nothing; only its links need the folder.

    :param folder: the output folder of the sample
    :param past_folder: the folder of the manifest
    :param result: what was generated; its items have the names of the sample's cells
    :param owner: marks temporary files
    :raises StorageError: the page cannot be written
    """
    from jinja2 import Environment, StrictUndefined

    made = {image.received.item.name: image for image in result.made}
    problems = {failure.item.name: str(failure.error) for failure in result.failures}

    def cell_of(cell: SampleCell) -> _Cell:
        if isinstance(cell.fit, RejectedRequest):
            return _Cell(f"Rejected before paying: {printable(cell.fit.reason, _TEXT_CHARACTERS)}")
        if (image := made.get(cell.name)) is not None:
            return _made_cell(folder, image)
        return _Cell(printable(problems.get(cell.name, "Not generated"), _TEXT_CHARACTERS))

    rows = [
        (
            printable(row.past.prompt, _TEXT_CHARACTERS),
            (_past_cell(past_folder, row.past), *(cell_of(cell) for cell in row.cells)),
        )
        for row in sample
    ]
    columns = zip(*(cells for _, cells in rows), strict=True)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(_PAGE).render(
        headers=["As bought", *(cell.model for cell in sample[0].cells)],
        rows=rows,
        totals=[format_usd(sum(cell.usd for cell in column)) for column in columns],
    )
    page = descend(folder, SHEET_NAME)
    write_bytes_atomically(page, html.encode(), content_type="text/html", owner=owner, within=folder)
    return address_of(page)


def _made_cell(folder: StoragePath, image: FinishedImage) -> _Cell:
    usd = image.record.usd
    if image.file is None:
        return _Cell(_cost(usd), usd or 0.0)
    return _Cell(_cost(usd), usd or 0.0, _preview(folder, image.file.thumbnail), quote(image.file.file_name))


def _past_cell(folder: StoragePath, past: PastRequest) -> _Cell:
    line = past.example
    preview = _preview(folder, line.thumbnail) or _preview(folder, line.file_name)
    usd = line.purchase_usd
    return _Cell(f"{printable(line.model or '', _TEXT_CHARACTERS)} {_cost(usd)}".strip(), usd or 0.0, preview)


def _preview(folder: StoragePath, name: str | None) -> str:
    """Return a stored image at reduced size as a ``data:`` URI; empty if there is none or it cannot be shown."""
    if name is None or not stays_below(name):
        return ""
    try:
        data = read_bytes(descend(folder, name), within=folder, max_bytes=MAX_IMAGE_BYTES)
        preview = make_thumbnail(data, pixels=PREVIEW_PIXELS) if data is not None else b""
    except (StorageError, BadImageError):
        return ""
    return f"data:image/webp;base64,{b64encode(preview).decode()}" if preview else ""


def _cost(usd: float | None) -> str:
    return "cost unknown" if usd is None else format_usd(usd)


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>The same prompts on several models</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }
table { border-collapse: collapse }
th, td { padding: .5rem; text-align: left; vertical-align: top }
th { font-weight: 600; min-width: 10rem; max-width: 24rem; overflow-wrap: anywhere }
tr + tr { border-top: 1px solid #8888 }
img { display: block; max-width: 24rem; height: auto }
</style>
</head>
<body>
<h1>The same prompts on several models</h1>
<table>
<thead>
<tr><th scope="col">Prompt</th>{% for header in headers %}<th scope="col">{{ header }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for prompt, cells in rows %}
<tr><th scope="row">{{ prompt }}</th>
{% for cell in cells %}
<td>
{%- if cell.link %}<a href="{{ cell.link }}">{% endif %}
{%- if cell.preview %}<img src="{{ cell.preview }}" alt="{{ headers[loop.index0] }}: {{ prompt }}">{% endif %}
{{- cell.text }}
{%- if cell.link %}</a>{% endif -%}
</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
<tfoot>
<tr><th scope="row">Total</th>{% for total in totals %}<td>{{ total }}</td>{% endfor %}</tr>
</tfoot>
</table>
</body>
</html>
"""
