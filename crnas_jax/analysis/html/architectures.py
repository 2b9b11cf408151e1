"""What an architecture search has scored: over time, over cost, the best networks drawn."""

import collections
import contextlib
import math

from markupsafe import Markup

from crnas_jax.analysis import plots
from crnas_jax.analysis.candidate_networks import network_of
from crnas_jax.analysis.candidates import Candidate, proposed_graphs
from crnas_jax.analysis.drawing import drawing
from crnas_jax.analysis.html.tables import (
    MISSING,
    details,
    duration,
    figure,
    grid,
    paragraph,
    section,
    span,
    table,
    wide,
)
from crnas_jax.analysis.markup import element
from crnas_jax.analysis.record import Record
from crnas_jax.arch.graphs import canonical, graph_code
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.settings import models as model_settings

# Rows of the table of the best candidates, and how many of them are drawn.
_BEST, _DRAWN = 20, 4
_SCORE = "AP on the proxy task, %"


def architectures(
    record: Record, config, scored: list[Candidate], networks: dict[str, int]
) -> Markup | None:
    """Return the architecture search: scores in their order, over cost, the best candidates.

    Args:
      record: the working folder.
      config: its config.
      scored: its candidates.
      networks: numbers of the networks by key.
    """
    if not scored:
        return None
    failed = [candidate for candidate in scored if candidate.failure]
    about = paragraph(
        f"{len(scored)} networks were trained on the proxy task, AP in percent on val with 95 % "
        "intervals over images. Such scores rank networks; trained with the final recipe they "
        "reach others."
    )
    best = scored[:_BEST]
    rows = [
        (
            f"{candidate.rank}",
            candidate.name,
            f"{100 * candidate.score:.2f}",
            span(candidate.ci95),
            f"{candidate.flops / 1e9:.4g}" if math.isfinite(candidate.flops) else MISSING,
            duration(candidate.seconds),
        )
        for candidate in best
    ]
    head = ("rank", "candidate", "AP", "95 %", "GMACs", "took")
    listed = details(
        f"The best {len(best)} as a table",
        table(head, rows, "Best candidates; --network=candidates --rank exports one of them"),
    )
    charts = [figure(chart, networks) for chart in score_charts(record, config, scored)]
    return section(
        "Candidates",
        about,
        grid(*charts),
        listed,
        _failures(failed),
        *_drawn(record, best),
        ident="candidates",
    )


def score_charts(record: Record, config, scored: list[Candidate]) -> list[plots.Chart]:
    """Return the scores in the order of proposals, and over multiply-adds where these are known.

    Args:
      record: the working folder.
      config: its config.
      scored: its candidates.
    """
    by_graph = {candidate.graph: candidate for candidate in scored}
    proposed = [by_graph.get(graph) for graph in proposed_graphs(record)]
    charts = []
    if any(proposed):
        values = [math.nan if entry is None else entry.score for entry in proposed]
        keys = ["" if entry is None else entry.name for entry in proposed]
        charts.append(plots.scores_in_order(values, keys, _SCORE))
    known = [candidate for candidate in scored if math.isfinite(candidate.flops)]
    if known:
        rows = [{"score": entry.score, "ci95": entry.ci95 or (None, None)} for entry in known]
        costs, keys = [entry.flops / 1e9 for entry in known], [entry.name for entry in known]
        marked = _marked(record, config, by_graph)
        name = "multiply-adds, G"
        charts.append(plots.scores_over_cost(name, costs, rows, keys, marked, (), _SCORE))
    return charts


def network_texts(scored: list[Candidate]) -> dict[str, str]:
    """Return by key what there is to say about each candidate that a page may follow."""
    texts = {}
    for candidate in scored:
        text = f"candidate {candidate.rank}, AP {100 * candidate.score:.1f} on the proxy task"
        if math.isfinite(candidate.flops):
            text += f"; {candidate.flops / 1e9:.4g} GMACs"
        texts[candidate.name] = text
    return texts


def _marked(record, config, by_graph):
    """Return the candidates that have a further part in the run, by what they are."""
    networks = {"finalists": [arch for arch, _ in record.finalists()]}
    with contextlib.suppress(UserError):  # its table may be gone
        networks["seed network"] = [model_settings.baseline(config)]
    marked = {}
    for name, archs in networks.items():
        graphs = [graph_code(canonical(a)) for a in archs if isinstance(a, ScalePermuted)]
        names = [by_graph[graph].name for graph in graphs if graph in by_graph]
        if names:
            marked[name] = names
    return marked


def _failures(failed):
    if not failed:
        return None
    counts = collections.Counter(candidate.failure for candidate in failed)
    rows = [(reason, f"{count}") for reason, count in counts.most_common()]
    return table(("why", "candidates"), rows, f"{len(failed)} candidates scored 0 for a failure")


def _drawn(record, best):
    for candidate in best[:_DRAWN]:
        network = network_of(record, candidate)
        if network is not None:
            text = f"{candidate.rank}: {candidate.name}, AP {100 * candidate.score:.1f}"
            yield element("div", element("p", text), wide(Markup(drawing(network)), "paper"))
