"""What was searched: every score over its cost, finalists, the greedy search's tree, the race."""

import itertools
from collections.abc import Sequence

from markupsafe import Markup

from crnas_jax.analysis import plots
from crnas_jax.analysis.html.tables import (
    details,
    figure,
    grid,
    paragraph,
    percent,
    section,
    span,
    table,
    wide,
)
from crnas_jax.analysis.html.tree import tree
from crnas_jax.analysis.record import Record, longest, read_arch
from crnas_jax.arch.staged import Arch, code_label
from crnas_jax.errors import UserError
from crnas_jax.search.refine import CALLED
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings.supernets import operation_space, stage_spaces
from crnas_jax.spaces.stages import StageSpace

# Rows of the table of the best allocations.
_BEST = 20
# Costs that differ by less are the same.
_ABOUT_EQUAL = 1.001
# Codes listed by name in a round of the race.
_MOST_LISTED = 40


def allocations(record: Record, costs: dict, networks: dict[str, int]) -> Markup | None:
    """Return the stage search: scores over cost, the best of them, finalists, rounds of a race.

    Args:
      record: the working folder.
      costs: see `known_costs`.
      networks: numbers of the networks by key.
    """
    all_rows = record.scores_of("stage")
    rows = list(longest(all_rows).values())
    if not rows:
        return None
    keys = [code_label(row["code"]) for row in rows]
    drawn = score_charts(record, costs)
    cost = _one_cost(drawn)
    charts = [
        figure(chart, networks)
        for label, chart in drawn.items()
        if cost is None or not label.startswith("multiply-adds")
    ]
    about = paragraph(
        f"{len(rows)} allocations were scored with the supernet's weights on val, AP in percent "
        "with 95 % intervals over images. Such scores rank networks; they are no promise of what "
        "training alone reaches.",
        f" All of them cost {cost}." if cost else None,
    )
    best = sorted(zip(rows, keys, strict=True), key=lambda pair: -pair[0]["score"])[:_BEST]
    listed = [
        (key, f"{100 * row['score']:.2f}", span(row.get("ci95")), f"{row['images']}")
        for row, key in best
    ]
    head = ("allocation", "AP", "95 %", "images")
    best_table = details(
        f"The best {len(listed)} as a table", table(head, listed, "Best allocations, percent")
    )
    return section(
        "Allocations of blocks",
        about,
        grid(*charts, finalists(record, networks)),
        best_table,
        _race(all_rows),
        ident="allocations",
    )


def _one_cost(charts):
    """Say what all networks cost where that is the same, which no chart needs to show."""
    chart = next(iter(charts.values()), None)
    if chart is None or len(chart.marks) != 1:
        return None
    costs = chart.series[0].x
    if max(costs) > min(costs) * _ABOUT_EQUAL:
        return None
    return f"{min(costs):.4g} G multiply-adds, the budget of {chart.marks[0][0]}"


def score_charts(record: Record, costs: dict) -> dict[str, plots.Chart]:
    """Return every scored allocation over its cost, by the name of the cost; none where unknown.

    Args:
      record: the working folder, in which allocations are scored.
      costs: see `known_costs`.
    """
    if not costs:
        return {}
    rows = list(longest(record.scores_of("stage")).values())
    keys = [code_label(row["code"]) for row in rows]
    marked = _marked(record, costs["baseline"])
    marks = [(f"{blocks:g} blocks", place / 1e9) for blocks, place in costs["marks"]]
    flops, params = (
        [cost / unit for cost in costs[name]] for name, unit in (("flops", 1e9), ("params", 1e6))
    )
    return {
        name: plots.scores_over_cost(name, values, rows, keys, marked, lines)
        for name, values, lines in (
            ("multiply-adds, G", flops, marks),
            ("parameters, M", params, ()),
        )
    }


def network_texts(record: Record, costs: dict) -> dict[str, str]:
    """Return by key what there is to say about each network that a page may follow.

    Args:
      record: the working folder.
      costs: see `known_costs`.
    """
    texts: dict[str, list[str]] = {}
    rows = longest(record.scores_of("stage"))
    for place, (code, row) in enumerate(rows.items()):
        low, high = row.get("ci95", (None, None))
        text = f"AP {100 * row['score']:.1f}"
        if low is not None:
            text += f" [{100 * low:.1f}, {100 * high:.1f}]"
        parts = [f"{text} in the supernet on {row['images']} images"]
        if costs:
            flops, params = costs["flops"][place] / 1e9, costs["params"][place] / 1e6
            parts.append(f"{flops:.4g} GMACs, {params:.4g} M parameters")
        texts[code_label(code)] = parts
    for arch, ap in record.finalists():
        texts.setdefault(arch.label, []).append(f"AP {100 * ap:.1f} trained alone, shortly, on val")
    for label in CALLED:
        row = (record.result or {}).get(label) or record.result_of(f"{label}/test")
        arch = read_arch(row["arch"]) if row and row.get("AP") is not None else None
        if isinstance(arch, Arch):
            key = arch.label
            text = f"AP {100 * row['AP']:.1f} on test"
            if text not in texts.setdefault(key, []):
                texts[key].append(text)
    return {key: "; ".join(parts) for key, parts in texts.items()}


def finalists(record: Record, networks: dict[str, int]) -> Markup | None:
    """Return finalists' AP when trained alone over their scores in the supernet."""
    in_supernet = {
        code_label(code): row["score"] for code, row in longest(record.scores_of("stage")).items()
    }
    rows = [(arch.label, in_supernet.get(arch.label), ap) for arch, ap in record.finalists()]
    rows = [row for row in rows if row[1] is not None]
    if len(rows) < 2:
        return None
    keys, scores, aps = zip(*rows, strict=True)
    chart = plots.scatter(
        [100 * score for score in scores],
        [100 * ap for ap in aps],
        "AP in the supernet, %",
        "AP trained alone, %",
        keys,
        "Finalists",
        keys,
        1.0,
    )
    about = "On val. Networks trained alone need not come in the supernet's order."
    return figure(chart, networks, about)


def operations(record: Record, config) -> Markup | None:
    """Return the operation search: the tree of partial codes, or the scored codes."""
    rows = record.scores_of("operation")
    result = record.result_of("operation_search")
    if not rows:
        return None
    scores = {tuple(row["code"]): row["score"] for row in rows}
    if len({len(code) for code in scores}) == 1 and max(map(len, scores)) > 1:
        ranked = sorted(scores.items(), key=lambda item: -item[1])[:_BEST]
        body = [(code_label(code), percent(score)) for code, score in ranked]
        shown = table(("code", "AP"), body, "Best codes of dilations, percent")
        return section("Dilations", shown, ident="dilations")
    dilations, key_of, tie, beam, columns = _operations(record, config, result)
    about = paragraph(
        f"Greedy search: column by column a {tie} gets its dilation, the number in a box; the best "
        f"{beam} partial codes stay (full frame), the others are dropped (broken frame). Below it "
        "the AP in the supernet of dilations, in percent, with what remains drawn at random; it "
        "cannot be compared with that in the supernet of allocations."
    )
    last = [(row["code"], row["score"]) for row in (result or {}).get("ranking", ())]
    again = table(
        (f"dilation of each {tie}", "AP"),
        [(" ".join(str(dilations[op]) for op in code), percent(score)) for code, score in last],
        "The last codes, best first, scored with their own statistics",
    )
    drawn = wide(tree(scores, dilations, beam, key_of, columns))
    return section("Dilations", about, drawn, again if last else None, ident="dilations")


def _operations(record, config, result):
    """Return the dilations, the key of a full code, what has one of them, the beam, and columns."""
    try:
        beam = search_settings.strategy_options(config).beam
        tie = config.supernet.tie
        dilations = tuple(config.supernet.dilations)
        arch = _allocation(record, config, result)
        space = operation_space(config, arch) if arch else None
    except (UserError, AttributeError, TypeError):
        return tuple(range(1, 100)), lambda code: None, "block", 3, ()

    def key_of(code):
        if space is None or len(code) != space.num_blocks:
            return None
        return model_settings.dilated(arch, space.dilations_of(code)).label

    return dilations, key_of, tie, beam, space.entries if space else ()


def _allocation(record, config, result):
    """Return the network whose dilations were searched; None before it is known."""
    baseline = model_settings.baseline(config)
    if not isinstance(baseline, Arch):
        return baseline
    if result is not None:
        return model_settings.found_arch(config, tuple(result["arch"]["depths"]))
    spec = record.read("operation_supernet/supernet.json")
    depths = tuple(max(grid) for grid in spec["grids"]) if spec else None
    return model_settings.found_arch(config, depths) if depths else None


def _marked(record, baseline):
    marked = {}
    finalist = [arch.label for arch, _ in record.finalists()]
    if finalist:
        marked["finalists"] = finalist
    row = record.result_of("stage_search")
    if row is not None:
        marked["first of the search"] = [code_label(row["arch"]["depths"])]
    return {**marked, "baseline": [baseline]}


def known_costs(record: Record, config) -> dict:
    """Return what the scored allocations cost, in the order of `longest`.

    Args:
      record: the working folder.
      config: its config.

    Returns:
      `flops` and `params` of each; `marks`, the budgets and their mean multiply-adds; `baseline`,
      its key. Nothing where nothing is scored, or the scores are of another network.
    """
    codes = list(longest(record.scores_of("stage")))
    try:
        return (_costs(record, config, codes) if codes else None) or {}
    except (UserError, AttributeError, TypeError):
        return {}


def _costs(record, config, codes: Sequence[tuple[int, ...]]):
    """Return multiply-adds and parameters of each allocation, and budgets; None where unknown."""
    num_classes = len(record.data.get("class_names", ()))
    baseline = model_settings.baseline(config)
    canvas = data_settings.image_size(config).canvas(portrait=False)
    if not num_classes or not isinstance(baseline, Arch):
        return None

    def measure(depths):
        arch = model_settings.found_arch(config, depths)
        cost = model_settings.detector_cost(config, arch, canvas, num_classes)
        return cost.flops, cost.params

    # A block adds the same to every network: what each stage adds is counted once for each depth.
    first = measure(codes[0])
    added = {}
    for stage, depth in {(s, d) for code in codes for s, d in enumerate(code)}:
        changed = (*codes[0][:stage], depth, *codes[0][stage + 1 :])
        added[stage, depth] = [new - old for new, old in zip(measure(changed), first, strict=True)]
    totals = [
        [
            start + sum(added[stage, depth][kind] for stage, depth in enumerate(code))
            for kind, start in enumerate(first)
        ]
        for code in codes
    ]
    flops, params = zip(*totals, strict=True)
    space = StageSpace.for_family(baseline.family)
    blocks = [space.cost(code) for code in codes]
    of_budget = {budget: [] for budget in sorted(stage_spaces(config))}
    for amount, cost in zip(blocks, flops, strict=True):
        of_budget.get(amount, []).append(cost)
    marks = [(budget, sum(costs) / len(costs)) for budget, costs in of_budget.items() if costs]
    return {
        "flops": flops,
        "params": params,
        "marks": marks,
        "baseline": baseline.label,
    }


def _race(rows):
    """Return the rounds of a race; None where all were scored on the same images."""
    rounds = {}
    for row in rows:
        rounds.setdefault(row["batches"], {})[tuple(row["code"])] = row
    if len(rounds) < 2:
        return None
    counts = sorted(rounds, key=lambda batches: (batches == 0, batches))
    body = []
    for batches, later in itertools.zip_longest(counts, counts[1:]):
        scored = rounds[batches]
        best = max(scored.values(), key=lambda row: row["score"])
        dropped = sorted(set(scored) - set(rounds[later])) if later is not None else []
        listed = ", ".join(code_label(code) for code in dropped[:_MOST_LISTED])
        more = f" and {len(dropped) - _MOST_LISTED} more" if len(dropped) > _MOST_LISTED else ""
        body.append(
            (
                f"{best['images']} images",
                f"{len(scored)}",
                f"{len(dropped)}",
                f"{code_label(best['code'])}, {100 * best['score']:.1f}",
                details(f"{len(dropped)}", listed + more) if dropped else "",
            )
        )
    head = ("after", "in the race", "dropped", "best", "which")
    return table(head, body, "Rounds of the race: surely worse allocations see no more images")
