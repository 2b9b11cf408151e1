"""What a changed config would repeat of the work in a folder: asked for before it starts."""

import itertools
from collections.abc import Iterable

from crnas_jax.experiments.keys import (
    candidates,
    compared,
    earlier_rows,
    network_step,
    num_seeds,
    owner,
    step_key,
)
from crnas_jax.experiments.run import Run
from crnas_jax.runtime.step_key import FINALISTS, RANKING, seed_step
from crnas_jax.runtime.workdir import repeats_error
from crnas_jax.settings.run import COMPARED
from crnas_jax.settings.step_keys import READS, choices

IF_ANOTHER = "if another network is found before it"


def repeats(run: Run, goals: Iterable[str]) -> dict[str, str]:
    """Return what of the finished or begun work the steps up to `goals` would repeat, and why.

    Args:
      run: the run.
      goals: rows of `READS`.

    Returns:
      Reasons by row; the reason is `IF_ANOTHER` where it depends on a search or choice to come.
    """
    wanted = _with_earlier_rows(run, goals)
    repeated = {}
    for row in READS:
        for step in _begun_steps(run, row) if row in wanted else ():
            key, stored = step_key(run, step), run.workdir.stored_key(step)
            changes = key.changes(stored)
            if key.is_known and run.workdir.is_set_aside(step, key):
                continue
            if changes:
                repeated[row] = ", ".join(changes)
            elif not key.is_known:
                repeated[row] = IF_ANOTHER
    return repeated


def require_no_repeats(run: Run, goals: Iterable[str]) -> None:
    """Raise UserError if work would be repeated and the working folder does not allow it."""
    repeated = repeats(run, goals)
    # More finalists or seeds alone repeat nothing, unless another network wins.
    if set(repeated.values()) - {IF_ANOTHER} and not run.workdir.redo:
        raise repeats_error(run.path, ", ".join(f"{s} ({why})" for s, why in repeated.items()))


def _begun_steps(run, row):
    """List the steps of a row that have a key."""
    name, _, part = row.partition("/")
    folders = [name]
    if name in (FINALISTS, RANKING):
        folders = [str(path.relative_to(run.path)) for path in sorted(run.path.glob(f"{name}/*"))]
    if name == FINALISTS:
        # Those of an earlier search are not trained again.
        archs = [candidates(run, choice) for choice in choices(run.config)]
        if None not in archs:
            wanted = {network_step(FINALISTS, arch) for arch in itertools.chain(*archs)}
            folders = [folder for folder in folders if folder in wanted]
    seeds = [
        str(path.relative_to(run.path))
        for folder in folders
        for path in sorted((run.path / folder).glob("seed*"))
    ]
    if name in COMPARED and seeds:  # those of a run with more seeds are not trained again
        wanted = {seed_step(name, seed) for seed in range(num_seeds(run, compared(run)))}
        seeds = [seed for seed in seeds if seed in wanted]
    steps = [f"{folder}/{part}" if part else folder for folder in (*folders, *seeds)]
    return [step for step in steps if run.workdir.stored_key(step) is not None]


def _with_earlier_rows(run, goals):
    wanted, waiting = set(), list(goals)
    while waiting:
        row = waiting.pop()
        waiting += earlier_rows(run, row)
        network, slash, part = row.partition("/")
        trained = owner(run, network) if network in COMPARED else network
        if trained != network:
            waiting.append(f"{trained}{slash}{part}")  # whose training serves it
        else:
            wanted.add(row)
    return wanted
