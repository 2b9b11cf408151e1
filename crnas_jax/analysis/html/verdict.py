"""What came back: the verdict, its evidence, and the networks in one table."""

import json

from markupsafe import Markup

from crnas_jax.analysis import report
from crnas_jax.analysis.html.tables import (
    MISSING,
    details,
    difference,
    paragraph,
    percent,
    section,
    table,
)
from crnas_jax.analysis.markup import element, join, name
from crnas_jax.analysis.record import Record
from crnas_jax.runtime.files import read_json
from crnas_jax.search.refine import CALLED

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# More classes than this are shown on demand.
_FEW_CLASSES = 12


def verdict(record: Record) -> Markup | None:
    """Say what came back, or how far the run is."""
    result = record.result
    if result is not None:
        first, *others = report.verdict(result)
        evidence = [paragraph(_sentence(line)) for line in others]
        chosen = element("p", _sentence(first), class_="verdict")
        return section("Result", chosen, *evidence, _evidence(result), ident="result")
    return section("Result", *_unfinished(record), ident="result")


def _sentence(line):
    return f"{line[0].upper()}{line[1:]}."


def _evidence(result):
    decision = result["decision"]
    if decision["difference"] is None:
        return None
    seeds = len(result["baseline"]["seeds"])
    rows = [
        ("compared on val", f"{CALLED[decision['challenger']]} minus baseline"),
        ("difference in AP, 95 % interval", difference(decision, "difference")),
        ("probability of being better", _probability(decision["probability"])),
        ("trainings of each network", f"{seeds}"),
    ]
    return table(("evidence", ""), rows, "What the decision rests on", class_="plain")


def _probability(value):
    return "unknown with one seed" if value is None else f"{value:.2f}"


def _unfinished(record):
    found = {level: record.result_of(f"{level}_search") for level in ("stage", "operation")}
    step = record.in_hand
    tested = [step for step in record.steps if step.endswith("/test")]
    if step is not None:
        state = f"The run is in {step.name}; nothing is decided yet."
    elif tested and not any(found.values()):
        state = "A network alone: nothing was searched, nothing is compared."
    elif any(found.values()):
        state = "A search alone: no network is decided on yet."
    else:
        state = "The run has finished no search yet."
    yield element("p", state, class_="verdict")
    for level, row in found.items():
        if row is not None:
            yield element("p", f"The {level} search has {report.search(level, row)}")


def networks_table(record: Record) -> Markup | None:
    """Return the compared networks with their cost and AP by size, on `test` or so far on `val`."""
    rows, split = compared_rows(record)
    if not rows:
        return None
    result = record.result
    latencies = {label: _latency(record, row) for label, row in rows.items()}
    columns = ["network", "blocks", "GMACs", "params M"]
    columns += ["ms for an image"] if any(latencies.values()) else []
    with_masks = any("segm" in row for row in rows.values())
    columns += [*_METRICS, *(["mask AP"] if with_masks else ())]
    columns += ["AP minus baseline"] if result else []
    body = []
    for label, row in rows.items():
        intervals = row.get("ci95") or {}
        cells = [CALLED.get(label, label), _blocks(row["arch"])]
        cells += [f"{row['flops'] / 1e9:.3f}", f"{row['params'] / 1e6:.3f}"]
        cells += [latencies[label] or MISSING] if any(latencies.values()) else []
        cells += [percent(row.get(metric), intervals.get(metric)) for metric in _METRICS]
        cells += [percent((row.get("segm") or {}).get("AP"))] if with_masks else []
        cells += [difference(row.get("difference"))] if result else []
        body.append(cells)
    caption = f"On {split}, in percent{_over(rows, result)}"
    title = "Networks" if result else f"Networks, on {split}"
    return section(
        title, table(columns, body, caption, class_="numbers"), _classes(rows), ident="networks"
    )


def compared_rows(record: Record) -> tuple[dict[str, dict], str]:
    """Return the metrics of the networks that are trained in the end, by name, and their split."""
    if record.result is not None:
        return {label: record.result[label] for label in CALLED if label in record.result}, "test"
    for split in ("test", "val"):
        rows = {label: _row_alone(record, f"{label}/{split}") for label in CALLED}
        rows = {label: row for label, row in rows.items() if row}
        if rows:
            return rows, split
    return {}, "test"


def _row_alone(record, step):
    """Return the metrics of one training, with intervals over images where they are known."""
    row = record.result_of(step)
    errors = record.read(f"{step}/errors.json") if row else None
    if not errors or "ci95" not in errors:
        return row
    per_class = dict(zip(row["per_class"], errors["ci95"]["per_class"], strict=False))
    return {**row, "ci95": {**errors["ci95"], "per_class": per_class}}


def _over(rows, result):
    """Say what the intervals are over; nothing where there are none."""
    if not any(row.get("ci95") for row in rows.values()):
        return ""
    count = len(result["baseline"]["seeds"]) if result else 1
    seeds = "" if count == 1 else f" and the {count} seeds"
    return f"; intervals of 95 % over images{seeds}"


def _blocks(arch):
    if "depths" not in arch:
        return f"{len(arch.get('blocks', ()))} permuted"
    depths, dilations = ("-".join(map(str, arch[name])) for name in ("depths", "dilations"))
    if set(arch["dilations"]) == {1}:
        return depths
    about = element("span", f"dilations {dilations}", class_="interval")
    return join([depths, " ", about])


def _latency(record, row):
    """Return the measured milliseconds of a network; None where none were measured."""
    file = record.path / "search" / "latency.json"
    if not file.is_file():
        return None
    wanted, found = json.dumps(row["arch"], sort_keys=True), None
    for key, milliseconds in read_json(file).items():  # the last is of the last device
        arch = json.loads(key[key.index("{") :])
        if json.dumps(arch, sort_keys=True) == wanted:
            device = element("span", key.partition(",")[0], class_="interval")
            found = join([f"{milliseconds:.1f} ", device])
    return found


def _classes(rows):
    labels = list(dict.fromkeys(label for row in rows.values() for label in row["per_class"]))
    body = []
    for label in labels:
        cells = [name(label)]
        for row in rows.values():
            intervals = (row.get("ci95") or {}).get("per_class", {})
            cells.append(percent(row["per_class"].get(label), intervals.get(label)))
        body.append(cells)
    shown = table(["class", *(CALLED[label] for label in rows)], body, "AP by class, in percent")
    if len(labels) <= _FEW_CLASSES:
        return shown
    return details(f"AP of the {len(labels)} classes", shown)


def summary(record: Record) -> Markup:
    """Return the heading of the page."""
    data = record.config.get("data", {})
    where = data.get("folder") if data.get("name") != "synthetic" else "generated images"
    return join(
        [
            element("h1", "Run ", name(record.path.resolve().name)),
            element("p", name(record.config.get("baseline", "")), " on ", name(where or "data")),
        ]
    )
