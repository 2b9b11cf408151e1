"""The candidates of an architecture search as the journal has them, best first."""

import dataclasses
import math
import pathlib

from crnas_jax.analysis.record import Record, json_lines
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.runtime.step_key import ARCHITECTURE_SEARCH, CANDIDATES
from crnas_jax.settings import architectures as settings
from crnas_jax.settings.fields import config_of


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that was trained on the proxy task.

    Attributes:
      rank: place by score, from 1.
      graph: code of its graph (`arch.graphs.graph_code`).
      score: AP on `val`, a fraction; the mean where it has several seeds.
      ci95: 95 % interval over images, of the first seed; () where there is none.
      name: name of its folder in `candidates`.
      failure: why it scored 0; "" where it has not failed.
      seconds: how long its training and evaluation took.
      flops: multiply-adds of the detector at the baseline's widths; NaN where they are unknown.
    """

    rank: int
    graph: tuple[int, ...]
    score: float
    ci95: tuple[float, ...]
    name: str
    failure: str = ""
    seconds: float = 0.0
    flops: float = math.nan


def candidates(record: Record) -> list[Candidate]:
    """List the candidates that are scored with all seeds, best first."""
    num_seeds = int(record.config.get("proxy", {}).get("seeds", 1))
    by_seed = []
    for seed in range(num_seeds):
        name = f"{CANDIDATES}, seed {seed}" if seed else CANDIDATES
        rows = record.scores_of(name, ARCHITECTURE_SEARCH)
        by_seed.append({tuple(row["code"]): row for row in rows})
    scored = []
    for graph, row in by_seed[0].items():
        if all(graph in rows for rows in by_seed):
            score = sum(rows[graph]["score"] for rows in by_seed) / num_seeds
            scored.append((score, graph, row))
    scored.sort(key=lambda entry: (-entry[0], entry[1]))
    return [
        Candidate(
            rank,
            graph,
            score,
            tuple(row.get("ci95") or ()),
            str(row.get("candidate", "")),
            str(row.get("failure", "")),
            float(row.get("seconds", 0.0)),
            float(row.get("flops", math.nan)),
        )
        for rank, (score, graph, row) in enumerate(scored, 1)
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


def network_of(record: Record, candidate: Candidate) -> ScalePermuted | None:
    """Return a candidate's network at the baseline's widths; None where it is of another one."""
    try:
        return settings.found_network(config_of(record.config), candidate.graph)
    except (UserError, AttributeError, TypeError, ValueError, IndexError):
        return None


def find_candidate(workdir: str | pathlib.Path, rank: int) -> tuple[str, ScalePermuted]:
    """Return the folder of a candidate's weights, and its network at the baseline's widths.

    The folder is named in the working folder, "" where the weights were not kept.

    Args:
      workdir: the working folder.
      rank: its place by score, from 1.

    Raises:
      UserError: there is none.
    """
    # Status and report, which import this module, need no JAX.
    from crnas_jax.export.detector import DESCRIPTION

    record = Record.open(workdir)
    scored = candidates(record)
    if rank > len(scored):
        problem = f"{rank}, and {len(scored)} candidates are scored"
        raise UserError("command line", "--rank", problem, "give a smaller number")
    network = network_of(record, scored[rank - 1])
    if network is None:
        problem = f"no network fits the baseline of {record.path / 'config.json'}"
        raise UserError("command line", "--rank", problem, "restore the folder's config.json")
    folder = record.path / CANDIDATES / scored[rank - 1].name
    files = sorted(folder.glob(f"attempts/*/{DESCRIPTION}"))
    return (str(files[-1].parent.relative_to(record.path)) if files else ""), network
