"""What `result.json` says of a last rung, whichever search came before it."""

import json
from collections.abc import Sequence

from crnas_jax.experiments import keys, last_rung
from crnas_jax.experiments.keys import step_key
from crnas_jax.experiments.last_rung import LastRung
from crnas_jax.runtime.step_key import FINALISTS, seed_step
from crnas_jax.search.refine import Decision

# A step's fields that are no metrics.
_BOOKKEEPING = ("seconds", "format", "devices", "finished")


def described(
    rung: LastRung, decision: Decision, choices: Sequence[str], steps: Sequence[str]
) -> dict:
    """Return finalists, decision, compared networks, data and times.

    Args:
      rung: the last rung, trained.
      decision: the decision on `val`.
      choices: those of `step_keys.CHOICES` that were made.
      steps: steps before the finalists.
    """
    run = rung.run
    return {
        "finalists": {choice: _finalists(run, choice) for choice in choices},
        "decision": {
            "network": decision.network,
            "challenger": decision.challenger,
            **_evidence(decision.difference),
            "reason": decision.reason,
        },
        "returned": decision.network,
        **{network: _row(rung, network) for network in rung.archs},
        "difference": _interval(rung.difference("searched", "test")),
        "dataset": {split: len(source) for split, source in run.sources.items()},
        **_times(rung, choices, steps),
    }


def _finalists(run, choice):
    """List the candidates of a choice that were trained alone, with both of their scores."""
    return [
        {"arch": json.loads(arch.to_json()), "supernet_score": score, "AP": ap}
        for arch, score, ap in keys.finalist_scores(run, choice)
        if ap is not None
    ]


def _row(rung, network):
    """Return the metrics of a network on the test split: means over seeds, and each seed's."""
    rows = [
        {name: value for name, value in row.items() if name not in _BOOKKEEPING}
        for row in rung.metrics(network, "test")
    ]
    seeds = [
        {"seed": keys.training_seed(rung.run, seed_step(network, index))}
        | {name: value for name, value in row.items() if isinstance(value, float | None)}
        for index, row in enumerate(rows)
    ]
    difference = {}
    if network != "baseline":
        difference = {"difference": _interval(rung.difference(network, "test"))}
    ci95 = rung.intervals.get(network)
    return {**last_rung.mean_metrics(rows), "ci95": ci95, **difference, "seeds": seeds}


def _interval(difference):
    return {"AP": difference.value, "ci95": list(difference.interval)}


def _evidence(difference):
    """Return a difference on `val` with its probability; all None where nothing was compared."""
    if difference is None:
        return dict.fromkeys(("probability", "difference", "ci95"))
    return {
        "probability": difference.probability,
        "difference": difference.value,
        "ci95": list(difference.interval),
    }


def _times(rung, choices, steps):
    """Return the seconds of every step that the result comes from, and when the last one ended."""
    names = list(steps)
    for choice in choices:
        for arch, _, ap in keys.finalist_scores(rung.run, choice):
            step = keys.network_step(FINALISTS, arch)
            names += [step, f"{step}/val"] if ap is not None else []
    for network in rung.names:
        names.append(f"{network}/pretrain")
        for seed in range(rung.num_seeds):
            step = seed_step(network, seed)
            names += [step, f"{step}/val", f"{step}/test"]
    run = rung.run
    results = {name: run.workdir.finished(name, step_key(run, name)) for name in names}
    # A finished search needs its supernet no more: its folder may be gone.
    seconds = {name: result["seconds"] for name, result in results.items() if result}
    # Steps of earlier versions do not say when they ended.
    finished = max(result.get("finished", "") for result in results.values() if result)
    return {
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "finished": finished,
    }
