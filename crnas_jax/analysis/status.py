"""How far a run is, from its working folder alone: for a terminal, and for the report."""

import datetime
import fnmatch
import re

from markupsafe import Markup

from crnas_jax.analysis import report
from crnas_jax.analysis.candidates import candidates
from crnas_jax.analysis.html.tables import duration, section, table
from crnas_jax.analysis.markup import element
from crnas_jax.analysis.record import Record, Step

# Silence after which a run may have been broken off, seconds.
_SILENT = 600
# Files that a run under way writes now and then.
_SIGNS = ("progress.json", "journal.jsonl", "invocations.jsonl")


def status(record: Record) -> dict:
    """Return how far a run is.

    Returns:
      `state`: "finished", "working", "stopped", "ended" (the last command, with no step in hand) or
      "silent" (broken off?); `step`: the step in hand; `progress`: how far the work in hand is;
      `silent_seconds`: seconds since the last sign of life; `parts`: for each part of the plan its
      `text` and the `share` that is done; `share`: the share of all; `seconds_left`: until all is
      done, None while unknown; `decision` and `warnings`: those of a finished run; `found`: lines.
    """
    parts, share, seconds_left = _parts(record)
    silent, step = _silent_seconds(record), record.in_hand
    if step is None and record.result is not None:
        state = "finished"
    elif "ended" in record.progress:
        state = "stopped" if step else "ended"
    else:
        state = "working" if silent < _SILENT else "silent"
    return {
        "state": state,
        "step": step.name if step else None,
        "progress": _progress(record, step),
        "silent_seconds": round(silent),
        "parts": parts,
        "share": share,
        "seconds_left": seconds_left if state == "working" else None,
        "decision": (record.result or {}).get("decision"),
        "warnings": report.warnings(record.result) if record.result else [],
        "found": found(record),
    }


def text(record: Record) -> str:
    """Return the status for a terminal."""
    now = status(record)
    ago = f"last sign of life {duration(now['silent_seconds'])} ago"
    about = {
        "finished": "finished",
        "working": f"working, {ago}",
        "silent": f"no sign of life for {duration(now['silent_seconds'])}: it may have been broken "
        "off; the same command goes on",
        "stopped": f"stopped, {ago}; the same command goes on",
        "ended": f"the last command has ended, {ago}",
    }
    lines = [f"{record.path}: {about[now['state']]}"]
    if now["step"]:
        lines.append(f"in {now['step']}{_progress_text(now['progress'])}")
    for part in now["parts"]:
        share = "done" if part["share"] == 1 else f"{100 * part['share']:.0f} %"
        lines.append(f"  {part['text']:65}{share:>6}")
    if now["seconds_left"] is not None:
        end = datetime.datetime.now() + datetime.timedelta(seconds=now["seconds_left"])
        lines.append(
            f"  all: {100 * now['share']:.0f} %, about {duration(now['seconds_left'])} left, "
            f"until {end:%Y-%m-%d %H:%M}"
        )
    return "\n".join([*lines, *now["found"]])


def status_section(record: Record) -> Markup | None:
    """Return how far a run is as a section; None once it is finished or nothing was planned."""
    now = status(record)
    if now["step"] is None:
        return None
    lines = [f"In {now['step']}{_progress_text(now['progress'])}."]
    if now["seconds_left"] is not None:
        lines.append(f"About {duration(now['seconds_left'])} are left.")
    rows = [(part["text"], f"{100 * part['share']:.0f} %") for part in now["parts"]]
    shown = table(("part", "done"), rows, "Parts of the plan") if rows else None
    return section("How far it is", element("p", " ".join(lines)), shown, ident="status")


def found(record: Record) -> list[str]:
    """Say what a run has found so far."""
    if record.result is not None:
        return report.table(record.result).splitlines()
    lines = []
    for level in ("stage", "operation"):
        row = record.result_of(f"{level}_search")
        if row is not None:
            lines += report.search(level, row).splitlines()[:1]
    scored = candidates(record)
    if scored:
        failed = sum(bool(candidate.failure) for candidate in scored)
        lines.append(
            f"{len(scored)} candidates scored, {failed} of them 0 for a failure; the best, "
            f"{scored[0].name}: AP {100 * scored[0].score:.1f} on the proxy task"
        )
    for step in record.steps:
        row = record.result_of(step)
        is_evaluation = step.endswith(("/val", "/test")) and record.is_current(record.steps[step])
        if is_evaluation and row is not None and row.get("AP") is not None:
            lines.append(f"{step}: AP {100 * row['AP']:.1f} %")
    return lines


def _progress(record, step):
    """Return the progress of the step in hand; nothing where what is there is of an earlier one."""
    progress = record.progress
    is_its_own = step and "unit" in progress and progress.get("time", "") >= step.begun
    return progress if is_its_own else {}


def _progress_text(progress):
    if not progress:
        return ""
    left, note = progress.get("seconds_left"), progress.get("note")
    more = f", {duration(left)} left" if left is not None else ""
    more += f", {note}" if note else ""
    if "ended" in progress:
        more = ", stopped"
    return f": {progress['unit']} {progress['done']}/{progress['total']}{more}"


def _silent_seconds(record):
    times = [record.path / name for name in _SIGNS]
    latest = [file.stat().st_mtime for file in times if file.exists()]
    latest = max([*latest, *(step.touched for step in record.steps.values())], default=0.0)
    return max(datetime.datetime.now().timestamp() - latest, 0.0)


def _parts(record: Record):
    """Return the parts of the plan, the share that is done, and the seconds that are left."""
    planned, in_hand = record.plan.get("parts", []), record.in_hand
    progress = _progress(record, in_hand)
    steps = [step for name, step in record.steps.items() if not name.startswith("ranking")]
    steps = [step for step in steps if step is in_hand or (step.result and record.is_current(step))]
    rows, seconds, spent_on, of_part = [], {}, 0.0, {}
    for part in planned:  # the last that names a step has it, with those that name the same ones
        names = part["steps"]
        of_part |= {s.name: names for s in steps if any(_matches(s, f) for f in names)}
    for part in planned:
        mine = [step for step in steps if of_part.get(step.name) == part["steps"]]
        finished = [step for step in mine if step.result is not None]
        begun = _fraction(in_hand, progress) if in_hand in mine else 0.0
        share = min((len(finished) + begun) / part["count"], 1.0)
        rows.append({"text": part["text"], "share": share, "is_begun": bool(mine)})
        seconds |= {step.name: step.result.get("seconds", 0.0) for step in finished}
        spent_on += part["trainings"] * min(len(finished) / part["count"], 1.0)
    for place, row in enumerate(rows):
        # Networks may coincide: fewer than planned are trained. The last part goes beside others.
        is_over = any(later["is_begun"] for later in rows[place + 1 : -1])
        if record.result is not None or (is_over and row["is_begun"]):
            row["share"] = 1.0
    total = sum(part["trainings"] for part in planned)
    pairs = list(zip(planned, rows, strict=True))
    done = sum(part["trainings"] * row["share"] for part, row in pairs)
    seconds_left = (total - done) * sum(seconds.values()) / spent_on if spent_on else None
    shown = [{"text": row["text"], "share": round(row["share"], 4)} for row in rows]
    return shown, done / total if total else 0.0, seconds_left


def _matches(step: Step, form):
    # "finalists/*" are the trainings, without what follows each of them.
    is_as_deep = form.count("/") == step.name.count("/")
    return fnmatch.fnmatchcase(step.name, form) and (is_as_deep or form.startswith("*"))


def _fraction(step: Step, progress):
    """Return the share of a step in hand that is done."""
    if not progress.get("total"):
        return 0.0
    share, name = progress["done"] / progress["total"], progress["name"]
    if name == step.name:
        return share
    if step.name.endswith("_search"):
        block = re.search(r"block (\d+) of (\d+)", name)
        if block:
            return (int(block[1]) - 1 + share) / int(block[2])
        return share / 2 if name.endswith("statistics") else (1 + share) / 2
    return 0.0
