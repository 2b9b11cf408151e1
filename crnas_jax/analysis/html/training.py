"""How the trainings went, and how well scores rank."""

from markupsafe import Markup

from crnas_jax.analysis import plots, report
from crnas_jax.analysis.html.tables import figure, grid, paragraph, percent, section, table
from crnas_jax.analysis.record import Record
from crnas_jax.runtime.step_key import split_seed
from crnas_jax.settings.run import COMPARED

# Curves in a chart.
_MOST_CURVES = 12


def curves(record: Record) -> Markup | None:
    """Return the loss of all trainings."""
    runs = {
        name: step.metrics
        for name, step in record.steps.items()
        if step is record.in_hand or record.is_current(step)
    }
    runs = {name: _with_loss(rows) for name, rows in runs.items() if rows}
    groups = {
        "Supernets": [name for name in runs if name.endswith("supernet")],
        "Networks": [name for name in runs if split_seed(name)[0] in COMPARED],
        "Finalists": [name for name in runs if name.startswith("finalists/")],
        "Networks of the ranking study": [name for name in runs if name.startswith("ranking/")],
        "Classification": [name for name in runs if name.endswith("/pretrain")],
    }
    keys = {name: name.partition("/")[2] for name in groups["Finalists"]}
    charts = []
    for title, names in groups.items():
        chosen = {name: runs[name] for name in names[:_MOST_CURVES] if runs[name]}
        if chosen:
            chart = plots.training_curves(f"{title}: loss", chosen, keys)
            more = len(names) - len(chosen)
            about = f"{more} more are not drawn." if more > 0 else ""
            charts.append(figure(chart, about=about))
    return section("Trainings", grid(*charts), ident="trainings") if charts else None


def _with_loss(rows):
    return [row for row in rows if isinstance(row.get("loss"), int | float)]


def studies(record: Record, networks: dict[str, int]) -> Markup | None:
    """Return the studies that were made of the searches themselves."""
    children = []
    ranking = record.read("ranking/result.json")
    if ranking:
        chart = plots.ranking(ranking)
        children.append(figure(chart, networks, report.agreement(ranking["agreement"])))
    rows = []
    for level in ("stage", "operation"):
        study = record.read(f"strategies/{level}.json")
        if study:
            seeds = study[level]
            children.append(figure(plots.strategies(seeds)))
            rows += [
                (f"{level}, seed {seed}", name, percent(row["AP"]), f"{row['image_passes']}")
                for seed, result in enumerate(seeds)
                for name, row in result.items()
            ]
    if rows:
        head = ("search", "strategy", "AP", "image passes")
        children.append(table(head, rows, "Strategies, percent"))
    if not children:
        return None
    about = paragraph("Do the supernet's scores rank networks as training them alone does?")
    return section("Studies", about if ranking else None, *children, ident="studies")
