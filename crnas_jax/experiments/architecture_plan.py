"""What a search of scale-permuted networks will cost: counted, and from a calibration candidate."""

import math
from collections.abc import Iterator

import jax
import numpy as np

from crnas_jax.analysis.record import json_lines
from crnas_jax.arch.graphs import canonical, graph_code
from crnas_jax.experiments import costs
from crnas_jax.experiments.architecture_search import STEP, CountedLimits
from crnas_jax.experiments.costs import Cost
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime.step_key import CANDIDATES, seed_step
from crnas_jax.search.strategies.successive_halving import num_candidates
from crnas_jax.settings import architectures as settings
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.training import train_options

# Codes that are drawn to see how many the limits reject.
_DRAWN = 100
_WORKERS = (1, 8, 100)
# Copies of the weights in a candidate's folder: two checkpoints with momentum, and the result.
_COPIES = 5
_BYTES = 4


def parts(run: Run) -> list[Cost]:
    """List what the whole procedure costs, in its order (`costs.Cost`)."""
    config, refine = run.config, run_settings.refine_options(run.config)
    count = _num_trainings(config)
    full = costs.num_steps(run, "detector_train")
    proxy = settings.proxy_config(config)
    share = _flops(run, proxy, settings.proxy_arch(config, model_settings.baseline(config)))
    share /= _flops(run, config, model_settings.baseline(config))
    share *= _images(run, proxy) / _images(run, config)
    text = f"{count} candidates and the seed network on the proxy task"
    num_trainings = count + settings.proxy_options(config).seeds
    listed = [Cost(text, num_trainings * share, (STEP,))]
    if refine.finalists:
        num_networks = refine.finalists + 1
        steps = costs.num_steps(run, "detector_train", refine.short)
        text = f"up to {num_networks} finalists, {steps} steps each"
        listed.append(Cost(text, num_networks * steps / full, ("finalists/*",), num_networks))
    names = ("baseline", "searched")
    trainings = len(names) * refine.num_seeds
    steps_of = tuple(seed_step(name, seed) for name in names for seed in range(refine.num_seeds))
    text = f"2 networks with {refine.num_seeds} seeds, {full} steps each"
    return [*listed, Cost(text, trainings, steps_of, trainings)]


def lines(run: Run) -> Iterator[str]:
    """Yield the lines of the plan about the search."""
    config, options = run.config, settings.proposal_options(run.config)
    base = model_settings.baseline(config)
    limits = settings.architecture_limits(config, run.num_classes)
    for number, phase in enumerate(settings.space_options(config).phases):
        space = settings.space(config, phase, base)
        text = f"{', '.join(phase)}: {_count(space.count())} codes"
        if number == 0:
            counted, rng = CountedLimits(space, limits), np.random.default_rng(run.options.seed)
            allowed = sum(counted.allows(space.sample(rng)) for _ in range(_DRAWN))
            text += f", the limits reject about {100 - 100 * allowed / _DRAWN:.0f} % of them"
        yield f"{'space' if number == 0 else '':12}{text}"
    text = f"{options.evaluations} by {options.architecture_strategy}"
    if options.architecture_strategy == "halving":
        text += f": {num_candidates(options.evaluations)} begin, the best are trained to the end"
    else:
        text += f", {options.in_flight} at once"
    if options.architecture_strategy == "evolution":
        text += f", the first {min(options.population, options.evaluations)} at random"
    yield f"candidates  {text}, {costs.num_steps_of(run, settings.proxy_config(config))} steps each"
    for number, part in enumerate(parts(run)):
        yield f"{'' if number else 'steps':12}{part.text:65}{part.trainings:7.2f}"
    yield from _calibrated(run)


def _count(count):
    return f"{count:,}" if count < 1e9 else f"{count:.3g}"


def _num_trainings(config):
    options, proxy = settings.proposal_options(config), settings.proxy_options(config)
    return options.evaluations * proxy.seeds * len(settings.space_options(config).phases)


def _calibrated(run):
    """Say how long the search takes, once the calibration candidate is trained."""
    config, options = run.config, settings.proposal_options(run.config)
    arch = settings.proxy_arch(config, model_settings.baseline(config))
    detector = model_settings.detector(settings.proxy_config(config), arch, run.num_classes)
    kept, whose = _num_kept(config)
    size = (
        _BYTES
        * sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(detector.shapes["params"]))
        * _COPIES
    )
    disk = f"disk        about {kept * size / 1e9:.2g} GB for {whose}"
    seconds = _seconds_of_seed(run)
    if seconds is None:
        yield f"{disk}; times are known once the seed network is trained, the first candidate"
        return
    count, total, at_once, most = _num_trainings(config), seconds["all"], max(_WORKERS), ""
    if options.architecture_strategy != "halving":  # which begins all of a rung
        at_once = options.in_flight * settings.proxy_options(config).seeds
        most = f" ({at_once} at once: search.in_flight)"
    ends = ", ".join(f"{_duration(count * total / min(n, at_once))} with {n}" for n in _WORKERS)
    yield (
        f"time        a candidate takes {total:.0f} s, {seconds['compilation']:.0f} s of them "
        f"compilation; all take {ends} workers at most{most}"
    )
    yield disk


def _duration(seconds):
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"


def _num_kept(config):
    """Return how many trainings are kept at most, and whose they are."""
    options, proxy = settings.proposal_options(config), settings.proxy_options(config)
    if options.architecture_strategy == "halving":  # each rung's until the next one begins
        count = num_candidates(options.evaluations)
        return count * proxy.seeds, f"the {count} candidates of the first rung"
    count = min(proxy.kept_candidates, _num_trainings(config) // proxy.seeds)
    return count * proxy.seeds, f"the {count} best candidates"


def _seconds_of_seed(run):
    """Return what the seed network took on the proxy task, from the journal; None before."""
    graph = list(graph_code(canonical(model_settings.baseline(run.config))))
    rows = json_lines(journal_file(run))
    known = [
        row["seconds_of"]
        for row in rows
        if row.get("search") == CANDIDATES and row.get("code") == graph and "seconds_of" in row
    ]
    return known[-1] if known else None


def _images(run, config):
    options = train_options(config, "detector_train")
    return options.epochs * len(run.sources["train"])


def _flops(run, config, arch):
    canvas = data_settings.image_size(config).canvas(portrait=False)
    return model_settings.detector_cost(config, arch, canvas, run.num_classes).flops
