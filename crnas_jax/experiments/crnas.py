"""CR-NAS from start to end: labelled images and a budget in, a reallocated detector out.

1. Train the supernet of allocations.
2. Search the allocation in it; train the best ones alone, and choose.
3. Train the supernet of dilations for that allocation.
4. Search the dilations in it; train the best ones alone, and choose.
5. Train the found network, its stage-only form and the baseline with several seeds each.
6. Decide on the validation split which of them is returned.
7. Evaluate all three on the test split.

A scale-permuted baseline has no allocation: 1 and 2 are left out, and there is no stage-only form.
"""

from crnas_jax.analysis.record import Record
from crnas_jax.arch import Architecture
from crnas_jax.errors import UserError
from crnas_jax.experiments import comparison, crnas_search, keys, last_rung, spinenet, steps
from crnas_jax.experiments.crnas_search import TrainedSupernet
from crnas_jax.experiments.keys import step_key
from crnas_jax.experiments.last_rung import LastRung
from crnas_jax.experiments.run import Run
from crnas_jax.models.backbones.build import AnySupernet
from crnas_jax.runtime import team
from crnas_jax.runtime.events import Events
from crnas_jax.runtime.files import write_json
from crnas_jax.runtime.workdir import FORMAT
from crnas_jax.search.refine import Decision
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import supernets as supernet_settings
from crnas_jax.settings.run import COMPARED, RETURNED
from crnas_jax.settings.step_keys import choices


def run_crnas(run: Run) -> dict:
    """Run all steps; write and return `result.json`, which has no `stage_search` without stages."""
    rung, decision = decide(run)
    levels = run_settings.levels(run.config)
    searches = {"stage": search_stage, "operation": search_operations}
    found = {f"{level}_search": searches[level](run) for level in levels}
    names = ("supernet/pretrain", "supernet", "search")
    before = [f"{level}_{name}" for level in levels for name in names]
    result = {
        "format": FORMAT,
        **{
            step: {name: search[name] for name in ("arch", "score", "evaluated")}
            for step, search in found.items()
        },
        **comparison.described(rung, decision, choices(run.config), before),
    }
    write_json(run.path / "result.json", result)
    for network in dict.fromkeys(map(rung.owners.get, ("baseline", "searched"))):
        steps.receptive_fields(run, network, steps.detector(run, rung.archs[network]))
    return result


def decide(run: Run) -> tuple[LastRung, Decision]:
    """Train the last rung and decide, after everything before it; `returned` is written.

    Returns:
      The rung, in which all networks are trained, and the decision on `val`.
    """
    choose_network(run)
    return last_rung.decide(run)


def train_supernet(run: Run, level: str) -> TrainedSupernet:
    """Train the supernet of a level, `stage` or `operation`, after everything it depends on.

    What a finished one has started from is not trained again.
    """
    network = f"{level}_supernet"
    run_settings.require_detection(run.config, network)
    spec = _supernet(run, network)
    if level == run_settings.levels(run.config)[0]:
        crnas_search.require_reachable(run, steps.detector(run, spec))
    elif (
        run_settings.starts_from_stage_supernet(run.config)
        and run.workdir.resume(network, step_key(run, network)) is None
    ):
        train_supernet(run, "stage")
    steps.pretrain_first(run, network, spec)
    return TrainedSupernet(run, network, steps.train_supernet(run, network, spec))


def search_stage(run: Run) -> dict:
    """Search the allocation, after the stage supernet is trained.

    Returns:
      See `crnas_search.search_allocation`; `seconds` are added.
    """
    return _search(run, "stage", crnas_search.search_allocation)


def search_operations(run: Run) -> dict:
    """Search the dilations, after the operation supernet is trained; fields as `search_stage`."""
    return _search(run, "operation", crnas_search.search_dilations)


def choose_allocation(run: Run) -> Architecture:
    """Return the allocation to go on with, after the stage search and its finalists' trainings.

    That of a baseline without stages is its own.
    """
    if not run_settings.has_stages(run.config):
        return keys.chosen(run, "allocation")
    search_stage(run)
    return last_rung.choose(run, "allocation")


def choose_network(run: Run) -> Architecture:
    """Return the found network, after the operation search and its finalists' trainings.

    Where the architecture is searched instead, that has to be finished.
    """
    if run_settings.searches_architecture(run.config):
        return spinenet.found(run)
    search_operations(run)
    return last_rung.choose(run, "network")


def _search(run, level, search):
    run_settings.require_search(run.config, level)
    step = f"{level}_search"
    if level == "operation":
        choose_allocation(run)  # a part of the key
    key = step_key(run, step)
    finished = run.workdir.resume(step, key)
    if finished is not None:  # nor is the supernet trained for it
        network = f"{level}_supernet"
        key = step_key(run, network)
        if run.workdir.is_set_aside(network, key):
            run.workdir.resume(network, key)
        return finished
    supernet = train_supernet(run, level)

    def work():
        result = search(supernet)
        team.decide(_show, run, level)
        return result

    return run.workdir.step(step, key, work)


def _show(run, level):
    """Write the scores of a search to TensorBoard, in the order in which they came."""
    best = 0.0
    with Events(run.path / f"{level}_search") as events:
        for number, row in enumerate(Record.open(run.path).scores_of(level)):
            best = max(best, row["score"])
            events.scalars(number, {"AP in the supernet": row["score"], "best so far": best})


def train_network(run: Run, network: str) -> str:
    """Train a compared network, or the returned one, with the run's seed, after what it comes from.

    Returns:
      Its folder in the working folder, which another network's may be.
    """
    if network == RETURNED:
        decide(run)
        return RETURNED
    run_settings.require_detection(run.config, network)
    architecture = _architecture(run, network)
    owner = keys.owner(run, network)
    steps.pretrain_first(run, owner, architecture)
    steps.train_network(run, owner, architecture)
    return owner


def evaluate(run: Run, network: str) -> dict:
    """Evaluate a compared network, or the returned one, on the test split, after it is trained."""
    if network == RETURNED:
        network = decide(run)[1].network
    owner = train_network(run, network)
    detector = steps.detector(run, _architecture(run, network))
    result = steps.evaluate(run, owner, detector, "test")
    steps.diagnosis(run, owner, detector, "test")
    steps.receptive_fields(run, owner, detector)
    return result


def pretrain(run: Run, network: str) -> dict:
    """Train a network on classification, after the searches it comes from.

    Raises:
      UserError: the config does not ask for it; nor for that of the network that it coincides with.
    """
    run_settings.require_pretraining(run.config, network)
    if network not in COMPARED:
        return steps.pretrain(run, network, _supernet(run, network))
    architecture = _architecture(run, network)
    network = keys.owner(run, network)
    run_settings.require_pretraining(run.config, network)
    return steps.pretrain(run, network, architecture)


def _supernet(run, network) -> AnySupernet:
    """Return what a supernet holds; for the operation supernet choose the allocation if need be."""
    if network == "stage_supernet":
        return supernet_settings.stage_supernet(run.config)
    return supernet_settings.operation_supernet(run.config, choose_allocation(run))


def _architecture(run, network) -> Architecture:
    """Return the architecture of a compared network; search it if need be."""
    if network == "baseline":
        return model_settings.baseline(run.config)
    if network == "stage_only":
        return choose_allocation(run)
    if network == "searched":
        return choose_network(run)
    raise UserError("command line", "network", f"{network!r} is unknown", f"use one of {COMPARED}")
