"""What the detectors get wrong: curves, confusions, kinds of false detections."""

import collections
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from crnas_jax.analysis import plots
from crnas_jax.analysis.html.tables import details, figure, grid, paragraph, section, table
from crnas_jax.analysis.markup import element, name, shorten
from crnas_jax.analysis.record import Record
from crnas_jax.search.refine import CALLED

# Classes with a curve, and of a confusion matrix, of their own.
_MOST_CURVES, _MOST_CLASSES = 5, 12
_KINDS = {
    "duplicate": "its object has a better detection",
    "class": "IoU of 0.5 or more with an object of another class",
    "place": "IoU of 0.1 to 0.5 with an object of its class",
    "class and place": "IoU of 0.1 to 0.5 with one of another class",
    "background": "IoU below 0.1 with all objects",
}


def judged(record: Record) -> dict[str, dict]:
    """Return what is known of the errors of the baseline and the network beside it, by name."""
    decision = (record.result or {}).get("decision") or {}
    # Of networks that coincide one alone is trained.
    others = [decision.get("network"), decision.get("challenger"), "searched", "stage_only"]
    found = {}
    for label in ("baseline", *others):
        content = record.read(f"{label}/test/errors.json") if label and len(found) < 2 else None
        if content:
            found[label] = content
    return found


def errors(record: Record) -> Markup | None:
    """Return the errors of the baseline and of the returned network, on `test`."""
    found = judged(record)
    class_names = record.data.get("class_names", [])
    if not found or not class_names:
        return None
    chosen = _worst_classes(found)
    about_curves = "" if len(chosen) == len(class_names) else "The classes with the lowest curves."
    charts = [
        figure(
            plots.precision_recall(
                f"{CALLED[label]}, IoU {iou}", _curves(content["curves"][iou], class_names, chosen)
            ),
            about=about_curves,
        )
        for iou in ("0.5", "0.75")
        for label, content in found.items()
        if chosen
    ]
    about = paragraph(
        "On test, of the training with the run's seed. In table and matrices, detections below the "
        "score with the best F1 are left out ("
        + ", ".join(f"{CALLED[label]}: score {row['score']:.2f}" for label, row in found.items())
        + "). An object that only a detection of another class covers is missed in the table, and "
        "in the matrix under that class."
    )
    matrices = [
        details(f"Confusion matrix, {CALLED[label]}", _confusion(content, class_names))
        for label, content in found.items()
    ]
    shown = grid(*charts, class_="two")
    return section("Errors", about, _kinds(found), shown, *matrices, ident="errors")


def _worst_classes(found) -> list[int]:
    """Return the classes that are drawn, the same in every chart: those with the lowest curves."""
    curves = [curve for content in found.values() for curve in content["curves"].values()]
    known = [label for label in range(len(curves[0])) if all(curve[label] for curve in curves)]
    known.sort(key=lambda label: sum(sum(curve[label]) for curve in curves))
    return sorted(known[:_MOST_CURVES])


def _curves(curves, class_names, chosen) -> Sequence[tuple[str, Sequence[float]]]:
    known = [curve for curve in curves if curve is not None]
    named = [(shorten(class_names[label], 40), curves[label]) for label in chosen]
    if len(known) < 2:
        return named
    mean = [sum(points) / len(known) for points in zip(*known, strict=True)]
    return [("mean over classes", mean), *named]


def _kinds(found: Mapping[str, dict]):
    kinds = next(iter(found.values()))["kinds"]
    rows = []
    for place, kind in enumerate(kinds):
        counts = [sum(row[place] for row in content["false"]) for content in found.values()]
        rows.append((f"false: {kind}", *map(_bar(found), counts)))
    missed = [sum(content["missed_by_image"]) for content in found.values()]
    rows.append(("missed objects", *map(_bar(found), missed)))
    legend = "; ".join(f"{kind}: {_KINDS[kind]}" for kind in kinds if kind in _KINDS)
    head = ("mistake", *(CALLED[label] for label in found))
    shown = table(head, rows, "False detections at an IoU of 0.5, by kind, and missed objects")
    return element("div", shown, paragraph(legend, class_="small"))


def _bar(found):
    most = max(
        max(sum(column) for column in zip(*content["false"], strict=True))
        for content in found.values()
    )
    most = max(most, *(sum(content["missed_by_image"]) for content in found.values()), 1)

    def bar(count):
        width = f"width: {max(100 * count / most, 0.5):.1f}%"
        return element(
            "td", f"{count} ", element("span", class_="bar", style=width), class_="with-bar"
        )

    return bar


def _confusion(content, class_names):
    nothing, counts = len(class_names), collections.Counter()
    score, totals = collections.Counter(), collections.Counter()
    for row, column, count in content["confusion"]:
        counts[row, column] = count
        totals[row] += count
        for place in (row, column) if row != column else ():
            score[place] += count
    chosen = list(range(len(class_names)))
    if len(chosen) > _MOST_CLASSES:
        chosen = sorted(sorted(chosen, key=lambda place: -score[place])[:_MOST_CLASSES])
    rows = []
    for row in (*chosen, nothing):
        label = name(class_names[row], 30) if row < nothing else "nothing that was free"
        total = max(totals[row], 1)
        cells = [_count(counts[row, column], total) for column in (*chosen, nothing)]
        rows.append((label, *cells))
    rows[-1] = (*rows[-1][:-1], "")
    head = [name(class_names[column], 30) for column in chosen]
    caption = "Rows: what is there, the last for detections without an object that was free. "
    caption += "Columns: as what it was detected"
    if len(chosen) < len(class_names):
        caption += f"; the {len(chosen)} classes that are confused most"
    return table(("", *head, "missed"), rows, caption, class_="confusion")


def _count(count, total):
    strength = f"--share: {35 * count / total:.0f}%"
    return element("td", f"{count}", style=strength, class_="share" if count else None)
