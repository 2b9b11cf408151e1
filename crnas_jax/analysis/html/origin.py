"""Where the result comes from: data, time, versions, config, commands."""

import json
import re
import shlex

from markupsafe import Markup

from crnas_jax.analysis.html.tables import details, duration, section, table
from crnas_jax.analysis.markup import element, name
from crnas_jax.analysis.record import Record
from crnas_jax.runtime.step_key import row_of

_MOST_NAMED, _LONGEST_NOTE = 30, 400


def data(record: Record) -> Markup | None:
    """Return the data as they were read."""
    splits = record.data.get("splits")
    if not splits:
        return None
    rows = [
        (split, f"{content['images']}", f"{content['objects']}")
        for split, content in splits.items()
    ]
    notes = [
        element("li", f"{split}: ", name(note, _LONGEST_NOTE))
        for split, content in splits.items()
        for note in content["notes"]
    ]
    notes += [element("li", name(note, _LONGEST_NOTE)) for note in record.data.get("notes", ())]
    class_names = record.data["class_names"]
    listed = [name(label) for label in class_names[:_MOST_NAMED]]
    counts = [content["objects_by_class"] for content in splits.values()]
    by_class = table(
        ("class", *splits),
        [(label, *(f"{count[row]}" for count in counts)) for row, label in enumerate(listed)],
        "Objects by class" + ("" if len(listed) == len(class_names) else ", the first of them"),
    )
    said = "What looks wrong or was changed" if notes else "Nothing was left out or looks wrong"
    return section(
        "Data as read",
        table(("split", "images", "objects"), rows, f"{len(class_names)} classes"),
        details("Objects by class", by_class),
        element("p", said, ":" if notes else "."),
        element("ul", *notes) if notes else None,
        ident="data",
    )


def time(record: Record) -> Markup | None:
    """Return wall time and device hours by step."""
    rows: dict[str, list[float]] = {}
    for step_name, step in record.steps.items():
        if step.result is not None and "seconds" in step.result:
            row = rows.setdefault(row_of(step_name), [0, 0.0, 0.0])
            seconds = step.result["seconds"]
            row[0] += 1
            row[1] += seconds
            row[2] += seconds * step.result.get("devices", 1) / 3600
    if not rows:
        return None
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    body = [
        (label, f"{count:g}", duration(seconds), f"{hours:.2f}")
        for label, (count, seconds, hours) in {**rows, "all": total}.items()
    ]
    head = ("step", "done", "wall time", "device hours")
    return section("Time", table(head, body, "Finished steps"), ident="time")


def origin(record: Record) -> Markup:
    """Return versions, seeds, config, and the commands to repeat, resume, predict and export."""
    folder = str(record.path)
    predict = ["--images=PHOTOS", "--output=detections.json"]
    detector = _detector(record)
    commands = {}
    given = [_flags_joined(row.get("command", [])) for row in record.invocations]
    begun = [row for row in given if any(flag.startswith("--config=") for flag in row)]
    if begun:
        commands["begin again in another folder"] = [
            "--workdir=ANOTHER" if argument.startswith("--workdir=") else argument
            for argument in begun[-1]
        ]
    if given and len(given[-1]) > 1:
        others = [flag for flag in given[-1][2:] if not re.match(r"--(config|workdir)\b", flag)]
        again = [*given[-1][:2], *others, f"--workdir={folder}"]
        commands["go on here, or print the result again"] = again
    if detector:
        commands["predict"] = ["crnas-jax", "predict", f"--detector={folder}/{detector}", *predict]
    if detector == "returned":
        commands["export"] = ["crnas-jax", "export", f"--workdir={folder}", "--output=EXPORT"]
    commands["this page again"] = ["crnas-jax", "report", f"--workdir={folder}"]
    shown = [
        element("div", element("p", label), element("pre", element("code", shlex.join(command))))
        for label, command in commands.items()
        if command
    ]
    config = json.dumps(record.config, indent=1, ensure_ascii=False)
    rows = []
    for row in record.invocations:
        versions = ", ".join(f"{n} {v}" for n, v in row.get("versions", {}).items())
        rows.append((row.get("started", ""), row.get("devices", ""), name(versions, 200)))
    used = table(("started", "devices", "versions"), rows, "Commands that worked here")
    seed = record.config.get("seed")
    return section(
        "How to repeat it",
        *shown,
        element("p", f"Seed {seed}; every further training of a network has its own."),
        details("Versions and devices", used) if rows else None,
        details("Config", element("pre", config)),
        ident="origin",
    )


def _flags_joined(command):
    """Return a command with each flag and its value in one argument."""
    joined = []
    for argument in map(str, command):
        if joined and re.fullmatch(r"--[\w.]+", joined[-1]) and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _detector(record):
    """Return the folder of the detector to predict with; None where there is none yet."""
    for label in ("returned", "searched", "baseline"):
        if (record.path / label / "detector.json").is_file():
            return label
    return None
