"""The report of a run: one HTML file that loads nothing and opens from anywhere."""

import base64
import hashlib
import json
import pathlib
from collections.abc import Sequence

from markupsafe import Markup
from ml_collections import ConfigDict

from crnas_jax import __version__
from crnas_jax.analysis.candidates import candidates
from crnas_jax.analysis.html import (
    architectures,
    errors,
    fields,
    networks,
    origin,
    photographs,
    search,
    training,
    verdict,
)
from crnas_jax.analysis.html.photographs import Photograph
from crnas_jax.analysis.markup import element, join
from crnas_jax.analysis.record import Record
from crnas_jax.analysis.status import status_section
from crnas_jax.runtime import files
from crnas_jax.settings.fields import config_of

NAME = "report.html"
_LEFT_OUT = "Photographs were left out (crnas-jax report --nophotographs)."
_FOLDER = pathlib.Path(__file__).parent


def write(
    record: Record, with_photographs: bool | None = None, output: pathlib.Path | None = None
) -> pathlib.Path:
    """Write the report of a working folder; return the file.

    Args:
      record: the working folder.
      with_photographs: whether test photographs are shown, while the data folder is there; None for
        as in the report that is there: who left them out once does not find them in it again.
      output: file to write; `report.html` in the folder when None.

    Raises:
      UserError: the file cannot be written.
    """
    config = config_of(record.config)
    path = record.path / NAME if output is None else output
    if with_photographs is None:
        pages = {path, record.path / NAME}
        with_photographs = not any(map(_leaves_out_photographs, pages))
    drawn, why_none = [], _LEFT_OUT
    if with_photographs:
        drawn, why_none = photographs.photographs(record, config)
    files.write(path, page(record, config, drawn, why_none).encode())
    return path


def _leaves_out_photographs(path):
    return path.is_file() and _LEFT_OUT in path.read_text(errors="replace")


def page(
    record: Record,
    config: ConfigDict,
    drawn: Sequence[Photograph] = (),
    why_no_photographs: str = "",
) -> str:
    """Return the report as text.

    Args:
      record: the working folder.
      config: its config.
      drawn: photographs to embed.
      why_no_photographs: what is said where there are none.
    """
    costs = search.known_costs(record, config)
    scored = candidates(record)
    texts = search.network_texts(record, costs) | architectures.network_texts(scored)
    places = {key: place for place, key in enumerate(texts)}
    sections = [
        verdict.verdict(record),
        status_section(record),
        verdict.networks_table(record),
        networks.networks(record),
        search.allocations(record, costs, places),
        search.operations(record, config),
        architectures.architectures(record, config, scored, places),
        training.curves(record),
        training.studies(record, places),
        errors.errors(record),
        fields.fields(record),
        photographs.grid_of(drawn, why_no_photographs),
        origin.data(record),
        origin.time(record),
        origin.origin(record),
    ]
    body = [
        element("a", "To the result", href="#result", class_="skip"),
        element("header", verdict.summary(record)),
        element("main", *sections),
        element("footer", f"crnas_jax {__version__}"),
        element("div", id="followed", role="status", aria_live="polite", hidden=True),
        element("div", id="tip", hidden=True),
        _data([[key, text] for key, text in texts.items()]),
    ]
    return Markup("<!doctype html>\n") + element(
        "html", _head(record), element("body", *body, _script()), lang="en"
    )


def _head(record):
    styles = join(Markup((_FOLDER / name).read_text()) for name in ("chart.css", "report.css"))
    digest = base64.b64encode(hashlib.sha256(_source().encode()).digest()).decode()
    # Whatever might slip in as an element loads and runs nothing.
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; img-src data:; "
    policy += "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", f"Run {record.path.resolve().name}"),
        element("style", styles),
    )


def _source():
    return (_FOLDER / "report.js").read_text()


def _script():
    return element("script", Markup(_source()))


def _data(value):
    """Return data for the script; nothing in it can end the element."""
    content = json.dumps(value, separators=(",", ":"))
    content = content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return element("script", Markup(content), type="application/json", id="networks-data")
