"""The config's limits on networks, those that are measured included."""

import dataclasses

from crnas_jax.experiments.run import Run
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.search.supernet.latency import LatencyMeter
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import supernets as supernet_settings
from crnas_jax.spaces.constrained import Limit


def limits(run: Run, detector: Detector) -> list[Limit]:
    """Return the config's limits on the networks that are trained in the end.

    Args:
      run: the run.
      detector: a supernet that holds these networks.
    """
    all_limits = search_settings.limits(run.config, run.num_classes)
    bound = search_settings.search_options(run.config).max_latency
    if bound:
        changes = {"kernel_sharing": "shared"}
        if run_settings.has_stages(run.config):  # any other is at its own widths
            widths = model_settings.baseline(run.config).widths
            changes |= {"widths": widths, "stage_sharing": "prefix"}
        spec = dataclasses.replace(detector.spec, **changes)
        detector = dataclasses.replace(detector, spec=spec)
        canvas = data_settings.image_size(run.config).canvas(portrait=False)
        meter = LatencyMeter(detector, canvas, run.path / "search" / "latency.json")
        all_limits.append(Limit(bound, "milliseconds", meter.milliseconds))
    return all_limits


def baseline_excess(run: Run) -> str:
    """Say which limits the baseline breaks, and whether it costs another budget; else ""."""
    arch = model_settings.baseline(run.config)
    grids, dilations = tuple((depth,) for depth in arch.depths), tuple(sorted(set(arch.dilations)))
    # The baseline may lie off the grids of the supernets.
    spec = SupernetSpec(arch.family, arch.widths, grids, dilations)
    detector = model_settings.detector(run.config, spec, run.num_classes)
    texts = [
        f"{value:,.4g} {limit.unit}, and {limit.bound:,.4g} are allowed"
        for limit in limits(run, detector)
        if (value := limit.measure(arch)) > limit.bound
    ]
    cost, budget = supernet_settings.stage_cost(arch), supernet_settings.budget(run.config)
    if cost != budget:
        texts.append(f"{cost:g} blocks, and the budget is {budget:g}")
    return f"the baseline has {'; '.join(texts)}" if texts else ""
