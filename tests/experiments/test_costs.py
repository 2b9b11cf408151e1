"""What the plan says a run costs: counted by hand for a small config."""

import pytest

from configs import quickstart, search_coco
from crnas_jax.experiments import costs
from crnas_jax.experiments.plan import plan
from crnas_jax.experiments.run import open_run
from crnas_jax.models.supernet.banks import SupernetSpec


def _run(tmp_path, **fields):
    config = quickstart.get_config()
    config.data.synthetic.update({"train": 16, "val": 8, "test": 8})
    config.stage_train.epochs = config.operation_train.epochs = 3.0
    config.detector_train.epochs = 6.0
    for recipe in (config.stage_train, config.operation_train, config.detector_train):
        recipe.batch_size = 8
    config.update_from_flattened_dict({"trained_bn": "running", **fields})
    return open_run(config, tmp_path / "run", dry=True)


def test_every_part_is_counted_in_trainings_of_the_baseline(tmp_path):
    parts = costs.costs(_run(tmp_path, **{"refine.operation_finalists": 1}))
    # 12 steps of 8 images a training; widths of supernets and networks are equal.
    expected = [
        ("stage supernet, 6 steps", 6 / 12),
        # Forward alone; 8 images to score on and 16 for the statistics.
        ("stage search, 25 allocations, 24 images each", 25 * 24 / 3 / 96),
        ("up to 3 finalists, 4 steps each", 3 * 4 / 12),
        ("operation supernet, 6 steps", 6 / 12),
        ("operation search, 18 partial codes, 8 images each", 18 * 8 / 3 / 96),
        ("operation search, 4 of its last codes again, 24 images each", 4 * 24 / 3 / 96),
        ("up to 1 finalists, 4 steps each", 4 / 12),
        ("up to 3 networks with 2 seeds, 12 steps each", 6),
        # 4 finalists on val, the rest on both.
        ("detection on val and test, up to 128 images", (4 * 8 + 6 * 16) / 3 / 96),
    ]
    assert [part.text for part in parts] == [text for text, _ in expected]
    for part, (_, trainings) in zip(parts, expected, strict=True):
        assert part.trainings == pytest.approx(trainings)


def test_the_papers_procedure_costs_two_trainings_after_the_searches(tmp_path):
    parts = costs.costs(_run(tmp_path, **{"refine.finalists": 0}))
    networks = ("baseline", "stage_only", "searched")
    assert parts[-2] == costs.Cost("up to 2 networks, 12 steps each", 2, networks, 2)
    assert parts[-1].text == "detection on test, up to 16 images"
    assert not any("finalists" in part.text for part in parts)


def test_the_share_of_steps_that_train_a_block():
    def shares(sharing):
        spec = SupernetSpec(
            "resnet_basic", (4, 4, 8, 8), ((1, 2, 4), (1,), (2,), (1,)), stage_sharing=sharing
        )
        return costs.block_shares(spec)

    assert shares("prefix") == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3, 1, 1, 1, 1])
    assert shares("branch") == pytest.approx([1 / 3] * 7 + [1] * 4)


def test_blocks_with_few_steps_are_warned_of_where_finalists_are_asked_for(tmp_path):
    few = {"supernet.stage_sharing": "branch", "stage_train.epochs": 1.0}
    text, warning = costs.block_steps(_run(tmp_path, **few))
    assert text.startswith("0 to 1 steps for a block of the stage supernet, ")
    assert text.endswith("12 in the final recipe")
    assert "below a fifth of the 12" in warning
    assert costs.block_steps(_run(tmp_path, **few, **{"refine.finalists": 0}))[1] == ""
    assert costs.block_steps(_run(tmp_path))[1] == ""


def test_the_plan_warns_of_starts_that_differ_in_kind(tmp_path):
    assert "starts from" not in plan(_run(tmp_path))
    text = plan(
        _run(tmp_path, **{"pretrain.networks": ("searched",), "pretrain.data.name": "synthetic"})
    )
    assert (
        "the baseline starts from random weights, all other networks from random weights, " in text
    )
    assert "finalists are not trained on classification first" in text
    assert "classification, searched, 4,096 images" in text
    assert "trainings of the baseline, about" in text


def test_the_papers_search_asks_for_no_finalists():
    config = search_coco.get_config("resnet18")
    assert config.refine.finalists == 0
    assert (config.search.rescore, config.trained_bn) == (False, "running")
    assert config.init_from.operation_supernet == ""
