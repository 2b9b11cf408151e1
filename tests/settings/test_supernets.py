"""What supernets hold: the depths that a budget reaches, or all of the grids."""

import itertools

import pytest

from configs import base, operations_spinenet, quickstart, search_coco
from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.settings import run, search, step_keys, supernets
from crnas_jax.settings.check import check


def _config(**supernet):
    config = base.get_config()
    config.baseline = "resnet18"
    config.supernet.update(supernet)
    return config


def test_depths_that_no_budget_reaches_are_left_out():
    """ResNet-18's paper grid: 9 of 10,000 paths cost 8 blocks, and few depths are in any."""
    config = _config()
    codes = list(supernets.stage_spaces(config)[8.0].enumerate())
    grids = supernets.stage_supernet(config).grids
    assert len(codes) == 9
    assert grids == tuple(tuple(sorted(set(depths))) for depths in zip(*codes, strict=True))
    everything = supernets.stage_supernet(_config(depths="all")).grids
    reachable = [set(grid) for grid in grids]
    paths = itertools.product(*everything)
    share = sum(all(d in r for d, r in zip(path, reachable, strict=True)) for path in paths)
    assert share / 10_000 == pytest.approx(0.0054)
    config.search.budgets = (12.0,)
    wider = supernets.stage_supernet(config).grids
    assert all(set(grid) <= set(more) for grid, more in zip(grids, wider, strict=True))
    assert wider != grids


def test_paths_of_a_supernet_reach_their_depths_equally_often():
    spec = supernets.stage_supernet(_config())
    paths = [spec.sample(0, step)["branch"] for step in range(400)]
    for stage, grid in enumerate(spec.grids):
        counts = [sum(path[stage] == depth for path in paths) for depth in range(len(grid))]
        assert max(counts) - min(counts) <= 1


def test_the_papers_recipe_is_the_papers():
    config = search_coco.get_config("resnet18")
    spec = supernets.stage_supernet(config)
    assert [len(grid) for grid in spec.grids] == [10, 10, 10, 10]
    assert (spec.stage_sharing, spec.draws, spec.tie) == ("branch", "uniform", "block")


def test_a_budget_changes_a_key_where_it_changes_the_supernet():
    def grids(budgets, depths):
        config = quickstart.get_config()
        config.supernet.grids = ((1, 2), (1, 2), (1, 2, 4), (1, 2, 4))
        config.supernet.depths, config.search.budgets = depths, budgets
        return step_keys.fields(config, step_keys.READS["stage_supernet"])["supernet.grids"]

    assert grids((), "all") == grids((5.0,), "all")
    assert grids((), "reachable") == grids((9.0,), "reachable")
    config = _config()
    before = step_keys.fields(config, step_keys.READS["stage_supernet"])
    config.search.budgets = (12.0,)
    assert step_keys.fields(config, step_keys.READS["stage_supernet"]) != before


def _permuted(tie="level"):
    config = operations_spinenet.get_config("quick")
    config.devices, config.supernet.tie = 1, tie
    return config


def test_the_tie_says_whether_dilations_of_a_scale_permuted_baseline_are_searched():
    arch = zoo.get("spinenet_seed8")
    for tie, count in (("level", 2**4), ("block", 2**8)):
        config = _permuted(tie)
        check(config)
        assert (run.levels(config), step_keys.choices(config)) == (("operation",), ("network",))
        spec = supernets.operation_supernet(config, arch)
        assert (spec.arch, spec.dilations, spec.draws) == (arch, (1, 2), "balanced")
        assert supernets.operation_space(config, arch).count() == count
        assert not run.starts_from_stage_supernet(config)
    config = _permuted("stage")
    check(config)
    assert (run.levels(config), step_keys.choices(config)) == ((), ("architecture",))
    config = _config()
    assert run.levels(config) == ("stage", "operation")
    assert step_keys.choices(config) == ("allocation", "network")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("supernet.tie", "x"),
        ("supernet.widths", (8, 8)),
        ("supernet.grids", ((1,),)),
        ("supernet.kernel_sharing", "x"),
        ("supernet.draws", "x"),
        ("pretrain.networks", ("stage_supernet",)),
    ],
)
def test_what_is_wrong_about_a_scale_permuted_supernet_is_named_by_its_field(field, value):
    config = _permuted()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        check(config)
    assert (caught.value.where, caught.value.field) == ("config", field)


def test_a_limit_that_no_dilation_helps_against_is_found_first():
    config = _permuted()
    config.search.max_params = 1000.0
    with pytest.raises(UserError, match="no operation code has at most 1000 parameters; the least"):
        search.require_reachable(config, search.limits(config, 3))
    config.search.max_params = 1e9
    search.require_reachable(config, search.limits(config, 3))
