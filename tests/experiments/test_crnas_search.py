"""Searches in which every candidate scores 0: the first is no better than the others."""

import types

import pytest

from configs import quickstart
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.experiments import crnas_search
from crnas_jax.experiments.crnas_search import search_allocation, search_dilations
from crnas_jax.experiments.run import open_run
from crnas_jax.settings.supernets import operation_supernet

ARCH = Arch("resnet_basic", (1, 1, 1, 1), (), (16, 32, 64, 128))


class Scores:
    """Scores of one value for every code, but for one code."""

    name, key = "stage", "digest"

    def __init__(self, value, other):
        self.value, self.other = value, other

    def score(self, codes):
        return [self.other if code == (1, 1, 2, 4) else self.value for code in codes]

    def effort(self):
        return {"evaluated": 3, "image_passes": 9}


@pytest.fixture
def supernet(tmp_path):
    config = quickstart.get_config()
    config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
    run = open_run(config, tmp_path, dry=True)
    supernet = types.SimpleNamespace(run=run, detector=None, arch=ARCH)
    supernet.stage_scores = lambda: Scores(0.0, 0.0)
    supernet.operation_scores = lambda partial, **_: Scores(0.0, 0.0)
    return supernet


@pytest.mark.parametrize("search", [search_allocation, search_dilations])
def test_it_stops_or_says_so(supernet, search, capsys):
    with pytest.raises(UserError, match=r"search.all_zero: every candidate of the \w+ search has"):
        search(supernet)
    supernet.run.config.search.all_zero = "continue"
    assert search(supernet)["score"] == 0
    assert "WARNING: every candidate of the" in capsys.readouterr().out


def test_codes_with_other_statistics_or_dilations_have_other_scores(tmp_path, monkeypatch):
    """Greedy's last codes are full ones, scored with the mini-batch's statistics."""
    journals = []
    monkeypatch.setattr(crnas_search, "SubnetScorer", lambda *args: journals.append(args[5]))
    monkeypatch.setattr(crnas_search, "SupernetScores", lambda *args: None)
    monkeypatch.setattr(crnas_search.TrainedSupernet, "_weights_digest", "weights")
    monkeypatch.setattr(crnas_search.TrainedSupernet, "variables", {})
    for dilations in ((1, 2), (1, 3)):
        config = quickstart.get_config()
        config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
        config.supernet.dilations = dilations
        run = open_run(config, tmp_path, dry=True)
        spec = operation_supernet(config, ARCH)
        backbone = types.SimpleNamespace(arch=ARCH)
        detector = types.SimpleNamespace(spec=spec, backbone=backbone)
        supernet = crnas_search.TrainedSupernet(run, "", detector)
        for partial in (True, False):
            supernet.operation_scores(partial)
    assert len({journal.key for journal in journals}) == 4


def test_the_last_codes_are_chosen_by_their_second_scores(supernet):
    """Those that the search ended with were of completions and of mini-batches' statistics."""
    again = types.SimpleNamespace(
        score=lambda codes: [0.1 + 0.1 * sum(code) for code in codes],
        effort=lambda: {"evaluated": len(set(asked)), "image_passes": 0},
    )
    asked = []
    score = again.score
    again.score = lambda codes: asked.extend(codes) or score(codes)
    supernet.operation_scores = lambda partial, **_: Scores(0.5, 0.0) if partial else again
    result = search_dilations(supernet)
    assert (0,) * len(asked[0]) in asked  # the code of ones
    best = max(asked, key=sum)
    assert result["ranking"][0] == {
        "code": list(best),
        "score": pytest.approx(0.1 + 0.1 * sum(best)),
    }
    assert sum(best) > 0
    supernet.run.config.search.rescore = False
    assert search_dilations(supernet)["ranking"][0]["score"] == 0.5


def test_one_score_above_zero_is_enough(supernet):
    supernet.stage_scores = lambda: Scores(0.0, 0.001)
    assert search_allocation(supernet)["arch"]["depths"] == [1, 1, 2, 4]
