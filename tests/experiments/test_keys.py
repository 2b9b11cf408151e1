"""What a changed field repeats: trainings and searches are counted, none is really run."""

import json

import pytest

from configs import quickstart
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.experiments import crnas, crnas_search, keys, steps
from crnas_jax.experiments import run as run_module
from crnas_jax.experiments.run import open_run
from crnas_jax.models.build import Model
from crnas_jax.settings.step_keys import READS

GOALS = ("searched/test", "baseline/test")
TRAININGS = {"stage_supernet", "operation_supernet", "searched", "baseline"}
TESTS = {"searched/test", "baseline/test"}
SEARCHES = {"stage_search", "operation_search"}
# By a changed field, what is done again when the searches find the same networks.
REPEATED = {
    "bootstrap=20": set(),
    "devices=1": set(),
    "remat=True": set(),
    "stage_train.checkpoint_seconds=7.0": set(),
    "search.max_subnets_per_call=2": set(),
    "search.all_zero='continue'": set(),
    "detector_train.epochs=3.0": {"searched", "baseline", *TESTS},
    "search.beam=2": {"operation_search"},
    "search.operation_strategy='random'": {"operation_search"},
    "search.stage_strategy='racing'": {"stage_search"},
    "search.budgets=(9.0,)": {"stage_search"},
    "search.max_params=1e9": SEARCHES,
    "search.batches=1": SEARCHES,
    "search.bn='batch'": SEARCHES,
    "operation_train.lr_per_image=0.01": {"operation_supernet", "operation_search"},
    "supernet.dilations=(1,3)": {"operation_supernet", "operation_search"},
    "stage_train.epochs=3.0": {"stage_supernet", "stage_search"},
    "supernet.grids=((1,2),(1,2),(1,2),(1,2,3))": {"stage_supernet", "stage_search"},
    "search.batch_size=8": {*SEARCHES, *TESTS},
    "data.max_objects=9": {*TRAININGS, *SEARCHES, *TESTS},
    "detector.head_channels=16": {*TRAININGS, *SEARCHES, *TESTS},
    "seed=1": {*TRAININGS, *SEARCHES, *TESTS},
}


class Procedure:
    """The procedure with trainings, searches and evaluations that only count.

    Attributes:
      done: names of what was done since the last `clear`.
      depths: what the stage search finds.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.done, self.depths = folder, [], (2, 2, 2, 2)
        for name in ("save_weights", "save_detector", "load_trained"):
            monkeypatch.setattr(steps, name, lambda *_: None)
        # Tracing is most of what is left.
        monkeypatch.setattr(Model, "shapes", {"params": {}})
        monkeypatch.setattr(steps, "_fit", lambda run, job: self.done.append(job.name))
        monkeypatch.setattr(steps, "predict_split", lambda *_: [])
        monkeypatch.setattr(steps, "split_metrics", self._evaluate)
        monkeypatch.setattr(crnas, "_difference", lambda run: {})
        monkeypatch.setattr(crnas_search, "search_allocation", self._search("stage_search"))
        monkeypatch.setattr(crnas_search, "search_dilations", self._search("operation_search"))

    def _evaluate(self, *_):
        self.done.append("test")
        return {}

    def _search(self, name):
        def search(supernet):
            self.done.append(name)
            depths = self.depths if name == "stage_search" else supernet.depths
            arch = Arch("resnet_basic", depths, (), (16, 32, 64, 128))
            return {"arch": json.loads(arch.to_json()), "score": 0.5, "evaluated": 1}

        return search

    def open(self, setting="", redo=False, **data):
        config = quickstart.get_config()
        config.data.synthetic.update({"train": 4, "val": 4, "test": 4, **data})
        if setting:
            name, _, value = setting.partition("=")
            config.update_from_flattened_dict({name: eval(value, {})})
        return open_run(config, self.folder, redo=redo)

    def run(self, setting="", redo=False, record=True):
        """Run everything as the command does; return what was done."""
        self.done.clear()
        run = self.open(setting, redo)
        try:
            keys.require_no_repeats(run, GOALS)
            if record:
                run.record()
            crnas.run_crnas(run)
        finally:
            run.workdir.release()
        tests = self.done.count("test")
        return sorted(name for name in self.done if name != "test"), tests


@pytest.fixture
def procedure(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    assert procedure.run() == (sorted(TRAININGS | SEARCHES), 2)
    return procedure


@pytest.mark.parametrize("setting", REPEATED)
def test_a_changed_field_repeats_what_reads_it_and_asks_first(procedure, setting):
    wanted = REPEATED[setting]
    if wanted:
        before = (procedure.folder / "config.json").read_text()
        with pytest.raises(UserError) as caught:
            procedure.run(setting)
        message, field = str(caught.value), setting.partition("=")[0]
        assert f"({field} " in message
        assert "give --redo" in message
        assert procedure.done == []
        assert (procedure.folder / "config.json").read_text() == before
    expected = (sorted(wanted - TESTS), len(wanted & TESTS))
    assert procedure.run(setting, redo=True) == expected
    assert procedure.run(setting) == ([], 0)
    # Back again, nothing is repeated, and so nobody is asked.
    assert procedure.run() == ([], 0)


def test_another_found_network_repeats_what_comes_after_it(procedure):
    procedure.depths = (1, 2, 2, 3)
    done, tests = procedure.run("search.batches=1", redo=True)
    assert done == sorted({*SEARCHES, "operation_supernet", "searched"})
    assert tests == 1
    aside = {path.name.rpartition("-")[0] for path in (procedure.folder / "set_aside").iterdir()}
    assert aside == {*SEARCHES, "operation_supernet", "searched", "searched-test"}


def test_only_what_a_command_needs_is_asked_for(procedure):
    run = procedure.open("detector_train.epochs=3.0")
    keys.require_no_repeats(run, ["operation_search"])
    with pytest.raises(UserError, match=r"baseline \(detector_train.epochs 10.0 -> 3.0\)"):
        keys.require_no_repeats(run, ["baseline"])
    run.workdir.release()


def test_begun_work_is_asked_for_too(procedure):
    (procedure.folder / "stage_supernet" / "result.json").unlink()
    with pytest.raises(UserError, match=r"stage_supernet \(stage_train.epochs"):
        procedure.run("stage_train.epochs=3.0")


def test_changed_data_are_refused(procedure):
    with pytest.raises(UserError, match=r"data.train: its annotations are not those"):
        procedure.open(train=8)


def test_other_weights_at_the_same_path_repeat_what_starts_from_them(procedure, monkeypatch):
    """A path alone says nothing about what lies there."""
    for digest, done in (("one", ["baseline"]), ("one", []), ("two", ["baseline"])):
        monkeypatch.setattr(run_module, "weights_digest", lambda _, digest=digest: digest)
        monkeypatch.setattr(run_module, "require_weights", lambda *_: None)
        assert procedure.run("init_from.baseline='folder'", redo=True)[0] == done


def test_a_latency_that_nothing_has_is_found_before_any_training(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    measured = []

    def milliseconds(_, arch):
        measured.append(arch.depths)
        return 10.0 + arch.depths[0]

    monkeypatch.setattr(crnas_search.LatencyMeter, "milliseconds", milliseconds)
    with pytest.raises(UserError) as caught:
        procedure.run("search.max_latency=5.0")
    message = str(caught.value)
    assert "no allocation of 8 blocks has at most 5 milliseconds" in message
    assert "the least: 11 milliseconds (1, " in message
    assert procedure.done == []
    assert len(set(measured)) > 1


def test_every_step_of_the_procedure_has_a_key(procedure):
    begun = {
        str(p.parent.relative_to(procedure.folder)) for p in procedure.folder.rglob("key.json")
    }
    assert begun == {step for step in READS if not step.endswith("pretrain")}
