"""The result of a run as a table for the terminal."""

from crnas_jax.search.refine import CALLED


def verdict(result: dict) -> list[str]:
    """Return which network a run's `result.json` returns, and the evidence, as lines."""
    decision = result["decision"]
    lines = [f"returned: the {CALLED[decision['network']]} network; {decision['reason']}"]
    if decision["difference"] is not None:
        challenger = CALLED[decision["challenger"]]
        lines.append(
            f"on val, {challenger} minus baseline: {_difference(decision, 'difference')}; "
            "val also chose the finalists, so that this is optimistic"
        )
    return lines


def table(result: dict) -> str:
    """Return a run's `result.json` as text: the verdict, then the networks on the test split."""
    lines = verdict(result)
    header = (
        f"{'on test':12}{'network':>16}{'GMACs':>8}{'params M':>10}{'AP':>8}{'AP50':>8}{'AP75':>8}"
    )
    lines.append(f"{header}  AP minus baseline, 95 %")
    rows = {network: result[network] for network in CALLED if network in result}
    for network, row in rows.items():
        metrics = "".join(f"{100 * (row[name] or 0):8.1f}" for name in ("AP", "AP50", "AP75"))
        arch = row["arch"]
        what = str(arch["depths"]) if "depths" in arch else f"{len(arch['blocks'])} blocks"
        line = (
            f"{CALLED[network]:12}{what:>16}{row['flops'] / 1e9:8.3f}"
            f"{row['params'] / 1e6:10.3f}{metrics}"
        )
        if "difference" in row:
            line = f"{line}  {_difference(row['difference'], 'AP')}"
        lines.append(line)
    num_seeds = len(result["baseline"]["seeds"])
    over = "test images" if num_seeds == 1 else f"test images and the {num_seeds} seeds of each"
    if "architecture_search" not in result:
        lines.append(f"dilations of the found network: {_dilations(result['searched']['arch'])}")
    lines.append(f"intervals are over {over}")
    return "\n".join([*lines, *(f"WARNING: {text}" for text in warnings(result))])


def warnings(result: dict) -> list[str]:
    """Say what makes a run's `result.json` worthless."""
    rows = [result[network] for network in CALLED if network in result]
    if max(row["AP"] or 0 for row in rows) >= 0.01:
        return []
    return ["no network has learned to detect: train longer (detector_train)"]


def _difference(row, name):
    """Return a difference in AP with its interval, and what the interval says."""
    value, (low, high) = row[name], row["ci95"]
    verdict = "not distinguishable" if low <= 0 <= high else ("better" if value > 0 else "worse")
    return f"{points(value)} [{points(low)}, {points(high)}] {verdict}"


def points(value: float) -> str:
    """Return a difference of fractions in percent points, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # adding 0 makes a plain 0 of -0


def search(level: str, result: dict) -> str:
    """Return what a search of a level found, `search_allocation`'s result, as text."""
    lines = [_found(level, result)]
    for row in result.get("pareto", []):
        mark = ", dominated" if row["dominated"] else ""
        lines.append(f"  budget {row['budget']:g} blocks: {_found(level, row)}{mark}")
    effort = f"{result['evaluated']} subnets scored, {result['image_passes']} image passes"
    return "\n".join([*lines, effort])


def _found(level, row):
    arch = row["arch"]
    code = arch["depths"] if level == "stage" else _dilations(arch)
    what = "depths" if level == "stage" else "dilations"
    return (
        f"found {what} {code}: AP {100 * row['score']:.1f} in the supernet, "
        f"{row['flops'] / 1e9:.3f} GMACs, {row['params'] / 1e6:.3f} M parameters"
    )


def _dilations(arch):
    # A scale-permuted network has none in its description where all are 1.
    return arch.get("dilations") or [1] * len(arch["blocks"])


def cost(result: dict) -> str:
    """Return what a search would cost (`search_cost`) as text."""
    hours = result["device_hours"]
    time = f"{hours:.1f} device hours" if hours >= 0.1 else f"{3600 * hours:.0f} device seconds"
    return (
        f"{result['evaluations']} evaluations, at most {result['image_passes']} image passes of "
        f"{1000 * result['seconds_per_image_pass']:.1f} ms: {time} on {result['devices']} "
        "device(s); training the supernet, compiling and reading images come on top"
    )


def metrics(result: dict) -> str:
    """Return the metrics of a network on a split (`split_metrics`) in percent, by class too."""
    lines = []
    for kind, values in (("boxes", result), ("masks", result.get("segm"))):
        if values:
            row = {name: value for name, value in values.items() if name.startswith(("AP", "AR"))}
            lines.append(f"{kind}: " + ", ".join(f"{n} {_percent(v)}" for n, v in row.items()))
            lines += [
                f"  {name:20} {_percent(value)}" for name, value in values["per_class"].items()
            ]
    voc = [name for name in ("VOC07_AP50", "VOC_AP50") if name in result]
    lines += [f"{name} {_percent(result[name])}" for name in voc]
    return "\n".join(lines)


def agreement(result: dict) -> str:
    """Return how one score ranks another (`ranking.agreement`) as text, without what is unknown."""
    texts = {name: _rounded(value) for name, value in result.items() if value is not None}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def receptive_fields(found: dict) -> str:
    """Return receptive fields (`erf.Field.to_json`) of networks as a row for each level."""
    lines = [f"{'network':36}{'level':>6}{'anchor':>8}{'width':>8}{'ratio':>7}{'size':>7}"]
    for name, fields in found.items():
        for field in fields:
            anchor, ratio = (
                "none" if field[key] is None else f"{field[key]:{form}}"
                for key, form in (("anchor", "g"), ("ratio", ".2f"))
            )
            lines.append(
                f"{name:36}{'p' + str(field['level']):>6}{anchor:>8}{field['width']:8.1f}"
                f"{ratio:>7}{field['size']:7.1f}"
            )
    lines.append(
        "width: four standard deviations of a fitted Gaussian, pixels; ratio: width over anchor"
    )
    return "\n".join(lines)


def _rounded(value):
    if isinstance(value, list):
        return f"[{', '.join('none' if v is None else f'{v:.3g}' for v in value)}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def strategies(result: dict) -> str:
    """Return a study of strategies as a row for each seed and strategy."""
    lines = [f"{'level':10}{'seed':>5} {'strategy':12}{'AP':>7}{'image passes':>14}  code"]
    for level, seeds in result.items():
        for seed, rows in enumerate(seeds):
            lines += [
                f"{level:10}{seed:5} {name:12}{_percent(row['AP']):>7}{row['image_passes']:14}  "
                f"{row['code']}"
                for name, row in rows.items()
            ]
    return "\n".join(lines)


def _percent(value):
    return "none" if value is None else f"{100 * value:.1f}"
