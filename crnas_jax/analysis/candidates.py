"""The candidates of an architecture search as the journal has them, best first."""

import dataclasses
import math

from crnas_jax.analysis.record import Record, json_lines
from crnas_jax.runtime.step_key import ARCHITECTURE_SEARCH, CANDIDATES, seed_scores


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that was trained on the proxy task.

    Attributes:
      rank: place by score, from 1.
      graph: code of its graph (`arch.graphs.graph_code`).
      score: AP on `val`, a fraction; the mean where it has several seeds.
      ci95: 95 % interval over images, of the first seed; () where there is none.
      name: name of its folder in `candidates`.
      attempt: name of the attempt in it that was scored.
      failure: why it scored 0; "" where it has not failed.
      seconds: how long its trainings and evaluations took.
      flops: multiply-adds of the detector at the baseline's widths; NaN where they are unknown.
    """

    rank: int
    graph: tuple[int, ...]
    score: float
    ci95: tuple[float, ...]
    name: str
    attempt: str = ""
    failure: str = ""
    seconds: float = 0.0
    flops: float = math.nan


def candidates(record: Record) -> list[Candidate]:
    """List the candidates that are scored with all seeds, best first."""
    num_seeds = int(record.config.get("proxy", {}).get("seeds", 1))
    by_seed = []
    for seed in range(num_seeds):
        rows = record.scores_of(seed_scores(CANDIDATES, seed), ARCHITECTURE_SEARCH)
        by_seed.append({tuple(row["code"]): row for row in rows})
    scored = []
    for graph in by_seed[0]:
        if all(graph in rows for rows in by_seed):
            of_seeds = [rows[graph] for rows in by_seed]
            score = sum(row["score"] for row in of_seeds) / num_seeds
            scored.append((score, graph, of_seeds))
    scored.sort(key=lambda entry: (-entry[0], entry[1]))
    return [
        Candidate(
            rank,
            graph,
            score,
            tuple(rows[0].get("ci95") or ()),
            str(rows[0].get("candidate", "")),
            str(rows[0].get("attempt", "")),
            next((str(row["failure"]) for row in rows if row.get("failure")), ""),
            sum(float(row.get("seconds", 0.0)) for row in rows),
            float(rows[0].get("flops", math.nan)),
        )
        for rank, (score, graph, rows) in enumerate(scored, 1)
    ]


def proposed_graphs(record: Record) -> list[tuple[int, ...]]:
    """List the graphs that were proposed, phase by phase and in their order."""
    files = (record.path / ARCHITECTURE_SEARCH).glob("proposals*.jsonl")
    graphs = []
    for file in sorted(files, key=lambda file: (len(file.name), file.name)):
        rows = json_lines(file)
        last_key = rows[-1].get("key") if rows else None  # earlier ones are of another strategy
        graphs += [tuple(row.get("graph", ())) for row in rows if row.get("key") == last_key]
    return graphs
