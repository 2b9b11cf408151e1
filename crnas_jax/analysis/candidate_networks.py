"""The networks of an architecture search's candidates, and where their weights are."""

import pathlib

from crnas_jax.analysis.candidates import Candidate, candidates
from crnas_jax.analysis.record import Record
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.data.paths import leads_out
from crnas_jax.errors import UserError
from crnas_jax.export.detector import DESCRIPTION
from crnas_jax.runtime.step_key import CANDIDATES
from crnas_jax.settings import architectures as settings
from crnas_jax.settings.fields import config_of


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
    record = Record.open(workdir)
    scored = candidates(record)
    if rank > len(scored):
        problem = f"{rank}, and {len(scored)} candidates are scored"
        raise UserError("command line", "--rank", problem, "give a smaller number")
    candidate = scored[rank - 1]
    network = network_of(record, candidate)
    if network is None:
        problem = f"no network fits the baseline of {record.path / 'config.json'}"
        raise UserError("command line", "--rank", problem, "restore the folder's config.json")
    folder = f"{CANDIDATES}/{candidate.name}/attempts/{candidate.attempt}"
    is_kept = not leads_out(folder) and (record.path / folder / DESCRIPTION).exists()
    return folder if is_kept else "", network
