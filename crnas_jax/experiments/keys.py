"""Keys of the steps of a run, and what a changed config would repeat."""

from collections.abc import Iterable

from crnas_jax.experiments.run import Run
from crnas_jax.runtime.files import digest
from crnas_jax.runtime.step_key import StepKey
from crnas_jax.runtime.workdir import repeats_error
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.step_keys import READS, Reads, fields

_SEARCHES = ("stage_search", "operation_search")


def step_key(run: Run, step: str) -> StepKey:
    """Return the key of a step of `READS`; inputs from searches to come are None.

    A training hands over its weights, which its key stands for, and a search the network that it
    found: a repeated search that finds the same one repeats nothing after it.
    """
    inputs = {name: _handed_over(run, name) for name in _earlier_steps(run, step)}
    if _starts_from_others(run, step):
        inputs["init_from"] = run.init_digests[step.partition("/")[0]]
    return key_of(run, READS[step], inputs)


def key_of(run: Run, reads: Reads, inputs: dict[str, str | None]) -> StepKey:
    """Return the key of what `reads` says and of inputs."""
    digests = {split: parts["annotations"] for split, parts in run.data_digests.items()}
    data = {split: digests[split] for split in reads.splits if split in digests}
    return StepKey(fields(run.config, reads), data, inputs)


def repeats(run: Run, goals: Iterable[str]) -> dict[str, str]:
    """Return what of the finished or begun work the steps up to `goals` would repeat, and why."""
    wanted = _with_earlier_steps(run, goals)
    repeated = {}
    for step in READS:
        stored = run.workdir.stored_key(step) if step in wanted else None
        if stored is None:
            continue
        key = step_key(run, step)
        changes = key.changes(stored)
        if key.is_known and run.workdir.is_set_aside(step, key):
            continue
        if changes:
            repeated[step] = ", ".join(changes)
        elif not key.is_known and repeated:
            repeated[step] = "if the search before it finds another"
    return repeated


def require_no_repeats(run: Run, goals: Iterable[str]) -> None:
    """Raise UserError if work would be repeated and the working folder does not allow it."""
    repeated = repeats(run, goals)
    if repeated and not run.workdir.redo:
        raise repeats_error(run.path, ", ".join(f"{s} ({why})" for s, why in repeated.items()))


def _with_earlier_steps(run, goals):
    wanted, waiting = set(), list(goals)
    while waiting:
        step = waiting.pop()
        wanted.add(step)
        waiting += _earlier_steps(run, step)
    return wanted


def _earlier_steps(run, step):
    earlier = READS[step].steps
    if step in run_settings.pretrained_networks(run.config):
        earlier = (*earlier, f"{step}/pretrain")
    return earlier


def _starts_from_others(run, step):
    """Tell whether a training starts from `init_from`; pre-training comes before detection."""
    network, _, part = step.partition("/")
    is_pretrained = network in run_settings.pretrained_networks(run.config)
    return network in run.init_digests and part != "test" and (part or not is_pretrained)


def _handed_over(run, step):
    key = step_key(run, step)
    if not key.is_known:
        return None
    if step not in _SEARCHES:
        return key.digest
    result = run.workdir.finished(step, key)
    return None if result is None else digest(repr(result["arch"]))
