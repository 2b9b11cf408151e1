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
from crnas_jax.arch.staged import code_label
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import read_json
from crnas_jax.search.refine import CALLED
from crnas_jax.settings.fields import config_of
from crnas_jax.settings.run import levels

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_GLOSSARY = {
    "AP": "average precision as COCO measures it, the mean over IoU thresholds 0.5 to 0.95 and "
    "classes; AP50 and AP75 at one threshold; APs, APm, APl for objects below 32, 32 to 96 and "
    "above 96 pixels of side",
    "train, val, test": "images for weights, for the searches and the decision, and for the end",
    "baseline, stage-only, found": "the network as it is, with its blocks moved, and with "
    "dilations too; what is returned is one of them",
    "supernet": "one network that holds all candidates; their scores in it, with shared weights, "
    "rank them quickly and roughly",
    "finalists": "the best of a search, trained alone for a short time",
    "block, stage": "a block is a few convolutions with a shortcut, a stage the blocks of one "
    "resolution; a budget is counted in blocks",
    "dilation": "the distance of the points that a 3 x 3 convolution reads",
    "p2, p3 and so on": "the levels of the feature pyramid, from fine to coarse; an anchor is the "
    "size of object that a level looks for",
    "GMACs": "billions of multiply-adds for one image",
}
# How each search makes a better network.
_WAYS = {
    "architecture": "changing order, levels and connections of its blocks",
    "stage": "moving blocks between its stages",
    "operation": "dilating its convolutions",
}
# More classes than this are shown on demand.
_FEW_CLASSES = 12


def verdict(record: Record) -> Markup | None:
    """Say what came back, or how far the run is."""
    result = record.result
    if result is not None:
        first, *others = report.verdict(result)
        evidence = [paragraph(_sentence(line)) for line in others]
        chosen = element("p", _sentence(first), class_="verdict")
        warned = [
            element("p", f"Warning: {text}.", class_="warning") for text in report.warnings(result)
        ]
        shown = _evidence(record, result)
        return section("Result", chosen, *warned, *evidence, shown, ident="result")
    return section("Result", *_unfinished(record), ident="result")


def _sentence(line):
    return f"{line[0].upper()}{line[1:]}."


def _evidence(record, result):
    decision = result["decision"]
    if decision["difference"] is None:
        return None
    seeds = len(result["baseline"]["seeds"])
    challenger, asked = decision["challenger"], record.config.get("refine", {}).get("confidence")
    rows = [
        ("compared", f"{CALLED[challenger]} minus baseline"),
        ("on val: difference in AP, 95 %", difference(decision, "difference")),
        ("on val: probability of being better", _probability(decision["probability"])),
        ("probability that is asked for", f"{asked:g}" if asked else MISSING),
        ("on test: difference in AP, 95 %", difference(result[challenger].get("difference"))),
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
            lines = "; ".join(line.strip() for line in report.search(level, row).splitlines())
            yield element("p", f"The {level} search has {lines}.")


def networks_table(record: Record) -> Markup | None:
    """Return the compared networks with their cost and AP by size, on `test` or so far on `val`."""
    rows, split = compared_rows(record)
    if not rows:
        return None
    result = record.result
    latencies = {label: _latency(record, row) for label, row in rows.items()}
    with_masks = any("segm" in row for row in rows.values())
    columns = ["network", "AP", *(["minus baseline"] if result else ()), *_METRICS[1:]]
    columns += ["mask AP"] if with_masks else []
    columns += ["blocks", "GMACs", "params M"]
    columns += ["ms for an image"] if any(latencies.values()) else []
    body = []
    for label, row in rows.items():
        intervals = row.get("ci95") or {}
        is_returned = result is not None and label == result["returned"]
        cells = [f"{CALLED[label]}, returned" if is_returned else CALLED[label]]
        metrics = [percent(row.get(metric), intervals.get(metric)) for metric in _METRICS]
        cells += metrics[:1]
        cells += [difference(row.get("difference"))] if result else []
        cells += metrics[1:]
        cells += [percent((row.get("segm") or {}).get("AP"))] if with_masks else []
        cells += [_blocks(row["arch"])]
        cells += [f"{row['flops'] / 1e9:.3f}", f"{row['params'] / 1e6:.3f}"]
        cells += [latencies[label] or MISSING] if any(latencies.values()) else []
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
    blocks = f"{len(arch.get('blocks', ()))} permuted"
    if "depths" in arch:
        blocks = code_label(arch["depths"])
    dilations = arch.get("dilations", ())
    if not set(dilations) - {1}:
        return blocks
    about = element("span", f"dilations {code_label(dilations)}", class_="interval")
    return join([blocks, " ", about])


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
    """Return the heading of the page: what was tried, when, on what, and what the words mean."""
    data, baseline = record.config.get("data", {}), name(record.config.get("baseline", ""))
    where = data.get("folder") if data.get("name") != "synthetic" else "generated images"
    days = [row.get("started", "")[:10] for row in record.invocations]
    sizes = ", ".join(
        f"{content['images']} images in {split}"
        for split, content in record.data.get("splits", {}).items()
    )
    epochs = record.config.get("detector_train", {}).get("epochs")
    about = f"{sizes}, " if sizes else ""
    about += f"images resized to {data.get('min_size')} to {data.get('max_size')} pixels"
    tried = (
        "Searched: a detector whose backbone spends the computation of ",
        baseline,
        f" better, by {', then by '.join(_ways(record))}.",
    )
    if "searched" not in compared_rows(record)[0] and not record.scores:
        tried = ("Trained: a detector with ", baseline, " as its backbone.")
    return join(
        [
            element("h1", "Run ", name(record.path.resolve().name)),
            element("p", *tried),
            element("p", " to ".join(dict.fromkeys(days[:1] + days[-1:]))) if days else None,
            element("p", name(where or "data"), f": {about}; {epochs:g} epochs of training.")
            if epochs
            else None,
            details("What the words mean", element("dl", *_words())),
        ]
    )


def _ways(record):
    try:
        searched = levels(config_of(record.config)) or ("architecture",)
    except (UserError, AttributeError, TypeError):  # the baseline's file may be gone
        searched = ("stage", "operation")
    return [_WAYS[level] for level in searched]


def _words():
    for word, meaning in _GLOSSARY.items():
        yield element("dt", word)
        yield element("dd", meaning)
