"""The study of strategies, on made-up scores: what its numbers are of."""

import json
import types

import pytest
from helpers import BATCHES, Noisy

from configs import quickstart
from crnas_jax.experiments.studies import strategy_study
from crnas_jax.settings.run import Settings

IMAGES = 16  # of a mini-batch


class Search(Noisy):
    """With a journal that counts."""

    def __init__(self, seed, name):
        super().__init__(seed)
        self.name, self.scorer = name, types.SimpleNamespace(journal=self)

    def image_passes(self, name):
        assert name == self.name
        return IMAGES * sum(self.passes.values())


class Searches:
    """Those of a supernet, as `searches.Searches` makes them."""

    def __init__(self, settings):
        self.settings = settings

    def of_stages(self, repeat, name):
        return Search(repeat, name)

    def of_operations(self, depths, greedy, repeat, name):
        assert depths == (2, 2, 2, 2)
        return Search(repeat, name)


@pytest.fixture
def pipeline(tmp_path):
    config = quickstart.get_config()
    config.supernet.grids = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4))
    settings = Settings(config)
    return types.SimpleNamespace(
        settings=settings,
        path=tmp_path,
        searches=lambda name: Searches(settings),
        search_stage=lambda: {"arch": {"depths": [2, 2, 2, 2]}},
    )


def test_strategies_stand_beside_each_other_at_equal_image_passes(pipeline):
    found = strategy_study(pipeline, seeds=2)
    for level, rows in found.items():
        file = pipeline.path / "strategies" / f"{level}.json"
        assert json.loads(file.read_text())[level] == rows
    space = pipeline.settings.stage_space
    everything = list(space.enumerate(pipeline.settings.budget))
    for seed, rows in enumerate(found["stage"]):
        worth = dict(zip(everything, Noisy(seed).score(everything), strict=True))
        assert rows["exhaustive"]["image_passes"] == len(everything) * BATCHES * IMAGES
        for row in rows.values():
            assert row["AP"] == worth[tuple(row["code"])]
            assert row["regret"] == max(worth.values()) - row["AP"]
        assert rows["exhaustive"]["regret"] == 0
        assert rows["halving"]["share"] <= 0.4
        for name in ("random", "evolution"):
            assert rows["halving"]["image_passes"] - rows[name]["image_passes"] >= 0
            assert rows["halving"]["share"] - rows[name]["share"] < 1 / len(everything)
    for seed, rows in enumerate(found["operation"]):
        assert set(rows) == {"greedy", "random", "evolution"}
        assert len({row["image_passes"] for row in rows.values()}) == 1
        for row in rows.values():
            assert row["AP"] == Noisy(seed).score([tuple(row["code"])])[0]


def test_a_study_of_one_search_leaves_the_other(pipeline):
    assert set(strategy_study(pipeline, 1, ["stage"])) == {"stage"}
