"""What a changed field repeats: trainings and searches are counted, none is really run."""

import json
import shutil
import types

import numpy as np
import pytest

from configs import quickstart
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.experiments import crnas, crnas_search, keys, limits, repeats, steps
from crnas_jax.experiments import run as run_module
from crnas_jax.experiments.run import open_run
from crnas_jax.models.build import Model
from crnas_jax.runtime.files import write_json
from crnas_jax.search.trained import TrainedScores
from crnas_jax.settings.step_keys import READS
from crnas_jax.settings.supernets import operation_space

ROLES = ("baseline", "stage_only", "searched")
GOALS = tuple(f"{role}/test" for role in ROLES)
SUPERNETS = {"stage_supernet", "operation_supernet"}
SEARCHES = {"stage_search", "operation_search"}
# Networks that are trained alone, and where they detect.
FINALISTS = {f"finalists/{name}{part}" for name in ("1-1-2-4", "2-2-2-2") for part in ("", "/val")}
PARTS = ("", "/val", "/test")
RUNG = {f"{role}{seed}{part}" for role in ROLES for seed in ("", "/seed1") for part in PARTS}
ALONE = FINALISTS | RUNG
ALL = SUPERNETS | SEARCHES | ALONE
OPERATIONS = {"operation_supernet", "operation_search"}
# By a changed field, what is done again when the searches find the same networks.
REPEATED = {
    "bootstrap=20": set(),
    "devices=2": set(),
    "remat=True": set(),
    "stage_train.checkpoint_seconds=7.0": set(),
    "search.max_subnets_per_call=2": set(),
    "search.all_zero='continue'": set(),
    "supernet.depths='all'": set(),  # all can be reached
    "refine.confidence=0.9": set(),
    "refine.short=0.4": FINALISTS,
    "detector_train.epochs=3.0": ALONE,
    "trained_bn='recalibrate'": set(),  # as "auto" means for such batches
    "trained_bn='running'": ALONE,
    "search.beam=2": {"operation_search"},
    "search.rescore=False": {"operation_search"},
    "search.operation_strategy='random'": {"operation_search"},
    "search.stage_strategy='racing'": {"stage_search"},
    "search.budgets=(9.0,)": {"stage_search"},
    "search.max_params=1e9": SEARCHES,
    "search.batches=1": SEARCHES,
    "search.bn='batch'": SEARCHES,
    "operation_train.lr_per_image=0.02": OPERATIONS,
    # What the search finds has other dilations.
    "supernet.dilations=(1,3)": OPERATIONS | {s for s in RUNG if s.startswith("searched")},
    "supernet.tie='block'": OPERATIONS,
    "init_from.operation_supernet=''": OPERATIONS,
    # The operation supernet starts from the stage supernet.
    "stage_train.epochs=3.0": SUPERNETS | SEARCHES,
    "supernet.draws='uniform'": SUPERNETS | SEARCHES,
    "supernet.grids=((1,2),(1,2),(1,2),(1,2,4))": SUPERNETS | SEARCHES,
    "search.batch_size=8": SEARCHES | {step for step in ALONE if step.endswith(("/val", "/test"))},
    "data.max_objects=9": ALL,
    "detector.head_channels=16": ALL,
    "seed=1": ALL,
}
# What makes of the quickstart the operation search of a network without stages.
PERMUTED = {
    **{"baseline": "spinenet_seed8", "widths": (), "supernet.widths": (), "supernet.grids": ()},
    **{"supernet.tie": "level", "detector.kind": "retinanet", "detector.head": "spinenet"},
    **{"detector.anchor_sizes": (16.0, 32.0, 64.0), "detector.head_convolutions": 1},
    "refine.operation_finalists": 2,
}
# One code of dilations is trained beside that of ones.
ONE = "refine.operation_finalists=1"
# Fields that only add work, for which nobody is asked, and what is added.
ADDED = {
    "refine.seeds=3": {f"{role}/seed2{part}" for role in ROLES for part in PARTS},
    "refine.finalists=3": {"finalists/2-1-1-4", "finalists/2-1-1-4/val"},
    ONE: {f"finalists/1-1-2-4_2-1-1-1-1-1-1-1{part}" for part in ("", "/val")},
}


class Procedure:
    """The procedure with trainings, searches and evaluations that only count.

    Attributes:
      done: names of the steps that were done since the last `clear`.
      depths: allocations of the stage search, best first.
      excess: what keeps the baseline out of it.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.done, self.excess = folder, [], ""
        monkeypatch.setattr(steps, "accuracy", lambda *_: {"top1": 0.0, "top5": 0.0})
        self.depths = [(1, 1, 2, 4), (2, 2, 2, 2), (2, 1, 1, 4)]
        for name in ("save_weights", "save_trained", "load_trained"):
            monkeypatch.setattr(steps, name, lambda *_: None)
        # Tracing is most of what is left.
        monkeypatch.setattr(Model, "shapes", {"params": {}})
        monkeypatch.setattr(steps, "_fit", lambda run, job: self.done.append(job.name))
        monkeypatch.setattr(steps, "predict_split", lambda *_: [])
        monkeypatch.setattr(steps, "split_metrics", lambda *_: {"AP": 0.0, "per_class": {}})
        monkeypatch.setattr(steps, "diagnosis", lambda *_: {"AP": np.zeros(10)})
        monkeypatch.setattr(steps.evidence, "show", lambda *_: None)
        monkeypatch.setattr(steps, "write_json", self._write)
        monkeypatch.setattr(crnas.last_rung, "publish", lambda *_: None)
        monkeypatch.setattr(crnas.last_rung, "TrainedScores", _Scores)
        monkeypatch.setattr(crnas_search, "search_allocation", self._search("stage_search"))
        monkeypatch.setattr(crnas_search, "search_dilations", self._search("operation_search"))

    def _write(self, path, content):
        """Note whose detections are written."""
        self.done.append(str(path.parent.relative_to(self.folder)))
        write_json(path, content)

    def _search(self, name):
        def search(supernet):
            self.done.append(name)
            if name == "stage_search":
                codes = self.depths
                arch = Arch("resnet_basic", codes[0], (), (16, 32, 64, 128))
            else:
                arch = supernet.arch
                space = operation_space(supernet.run.config, arch)
                last = len(space.dilations) - 1
                codes = [(last, *[0] * (space.num_blocks - 1)), (last,) * space.num_blocks]
            ranking = [{"code": list(code), "score": 0.5} for code in codes]
            arch = json.loads(arch.to_json())
            result = {"arch": arch, "score": 0.5, "evaluated": 1, "ranking": ranking}
            return {**result, "baseline_excess": self.excess}

        return search

    def open(self, setting="", redo=False, **data):
        config = quickstart.get_config()
        config.bootstrap, config.erf_images = 10, 0
        config.data.synthetic.update({"train": 4, "val": 4, "test": 4, **data})
        if isinstance(setting, str):
            name, _, value = setting.partition("=")
            setting = {name: eval(value, {})} if name else {}
        config.update_from_flattened_dict(setting)
        return open_run(config, self.folder, redo=redo)

    def run(self, setting="", redo=False, record=True):
        """Run everything as the command does; return what was done."""
        self.done.clear()
        run = self.open(setting, redo)
        try:
            repeats.require_no_repeats(run, GOALS)
            if record:
                run.record()
            self.result = crnas.run_crnas(run)
        finally:
            run.workdir.release()
        assert len(self.done) == len(set(self.done))
        # The test split is read after everything that decides.
        tested = [step.endswith("/test") for step in self.done]
        assert tested == sorted(tested)
        return set(self.done)


class _Scores(TrainedScores):
    """Scores without matching.

    Attributes:
      ap_of: AP of a network's code.
    """

    ap_of = staticmethod(lambda code: 0.0)

    def _match(self, code, detections):
        ap = self.ap_of(code)
        self._tables[code] = types.SimpleNamespace(
            metrics=lambda: {"AP": ap}, bootstrap_ap=lambda weights: np.full(len(weights), ap)
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a procedure that has done everything; its folder is only to be copied."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        procedure = Procedure(tmp_path_factory.mktemp("finished") / "run", monkeypatch)
        assert procedure.run() == ALL
    return procedure


@pytest.fixture
def procedure(finished, tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    shutil.copytree(finished.folder, procedure.folder)
    procedure.result = finished.result
    return procedure


@pytest.mark.parametrize("setting", REPEATED)
def test_a_changed_field_repeats_what_reads_it_and_asks_first(procedure, setting):
    wanted = REPEATED[setting]
    if wanted:
        before = (procedure.folder / "config.json").read_text()
        with pytest.raises(UserError) as caught:
            procedure.run(setting)
        message, field = str(caught.value), setting.partition("=")[0]
        cause = f"({field}" if not field.startswith("init_from") else "stage_supernet is another"
        assert cause in message
        assert "give --redo" in message
        assert procedure.done == []
        assert (procedure.folder / "config.json").read_text() == before
    assert procedure.run(setting, redo=True) == wanted
    assert procedure.run(setting) == set()
    # Back again, nothing is repeated, and so nobody is asked.
    assert procedure.run() == set()


@pytest.mark.parametrize("setting", ADDED)
def test_more_finalists_or_seeds_train_only_what_is_new(procedure, setting):
    before = procedure.result
    assert procedure.run(setting) == ADDED[setting]
    assert len(procedure.result["baseline"]["seeds"]) == (3 if "seeds" in setting else 2)
    assert procedure.run() == set()
    assert procedure.result["decision"] == before["decision"]


def test_the_best_finalist_is_chosen(tmp_path, monkeypatch):
    """By its AP when trained alone, whatever the search says."""

    def run(name, ap_of, setting=""):
        monkeypatch.setattr(_Scores, "ap_of", staticmethod(ap_of))
        procedure = Procedure(tmp_path / name, monkeypatch)
        procedure.run(setting)
        return procedure.result

    for depths in ((2, 2, 2, 2), (1, 1, 2, 4)):
        result = run(str(depths[3]), lambda code, depths=depths: 0.5 * (code[:4] == depths))
        for network in ("stage_only", "searched"):
            assert result[network]["arch"]["depths"] == list(depths)
    for sign, dilation in ((1, 2), (-1, 1)):
        result = run(f"dilation{dilation}", lambda code, s=sign: 0.5 + s * sum(code[4:]) / 100, ONE)
        assert max(result["searched"]["arch"]["dilations"]) == dilation


def test_seeds_of_a_run_with_more_are_not_asked_about(procedure):
    procedure.run("refine.seeds=3")
    changed = {"detector_train.epochs": 3.0}
    assert "baseline/seed2" not in procedure.run(changed, redo=True)
    assert procedure.run(changed | {"bootstrap": 20}) == set()  # nobody is asked


def test_a_further_seed_starts_from_the_pretraining_of_its_config(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    pretrained = {"pretrain.networks": ("baseline",), "pretrain.data.name": "synthetic"}
    assert "baseline/pretrain" in procedure.run(pretrained)
    file = procedure.folder / "baseline" / "pretrain" / "key.json"
    before = json.loads(file.read_text())["key"]
    assert "baseline/pretrain" in procedure.run(pretrained | {"pretrain.epochs": 8.0}, redo=True)
    done = procedure.run(pretrained | {"refine.seeds": 3}, redo=True)
    assert json.loads(file.read_text())["key"] == before
    assert done == ADDED["refine.seeds=3"]


def test_another_found_network_repeats_what_comes_after_it(procedure):
    procedure.depths = [(1, 1, 1, 5), (2, 2, 2, 2)]
    done = procedure.run("search.batches=1", redo=True)
    others = {step for step in RUNG if not step.startswith("baseline")}
    finalist = {"finalists/1-1-1-5", "finalists/1-1-1-5/val"}
    assert done == {*SEARCHES, "operation_supernet", *finalist, *others}
    aside = {path.name.rpartition("-")[0] for path in (procedure.folder / "set_aside").iterdir()}
    assert aside == {step.replace("/", "-") for step in {*SEARCHES, "operation_supernet", *others}}


def test_finalists_of_an_earlier_search_are_not_asked_about(procedure):
    procedure.depths = [(1, 1, 1, 5), (2, 2, 2, 2)]
    procedure.run("search.batches=1", redo=True)
    both = {"search.batches": 1, "refine.short": 0.4}
    assert "finalists/1-1-2-4" not in procedure.run(both, redo=True)
    assert procedure.run(both | {"bootstrap": 20}) == set()  # nobody is asked


def test_networks_that_coincide_are_trained_once(procedure):
    """Equal scores choose the smaller code: here that of ones, and then the baseline."""
    procedure.folder = procedure.folder.with_name("ones")
    done = procedure.run(ONE)
    assert done & RUNG == {step for step in RUNG if not step.startswith("searched")}
    result = procedure.result
    assert result["searched"] == result["stage_only"]
    procedure.folder, procedure.depths = procedure.folder.with_name("baseline"), [(2, 2, 2, 2)]
    done = procedure.run(ONE)
    assert done & RUNG == {"baseline", "baseline/test"}  # one seed: there is nothing to compare
    assert procedure.result["decision"]["reason"] == "the searches found the baseline itself"
    assert procedure.result["difference"] == {"AP": 0.0, "ci95": [0.0, 0.0]}


def test_a_baseline_that_breaks_a_limit_is_compared_in_the_last_rung_alone(tmp_path, monkeypatch):
    """As a finalist it could win, and then no code of its dilations would be allowed."""
    procedure = Procedure(tmp_path / "run", monkeypatch)
    procedure.excess = "the baseline has 8 blocks, and the budget is 7"
    procedure.depths = [(1, 1, 2, 3), (1, 2, 1, 3), (2, 1, 1, 3)]
    done = procedure.run({"budget": 7.0})
    assert {step for step in done if step.startswith("finalists")} == {
        f"finalists/{name}{part}" for name in ("1-1-2-3", "1-2-1-3") for part in ("", "/val")
    }
    assert set(procedure.result) >= set(ROLES)
    assert procedure.result["decision"]["reason"].startswith(procedure.excess)


def test_a_search_of_an_earlier_version_goes_on(procedure):
    """Its result does not say whether the baseline breaks a limit."""
    file = procedure.folder / "stage_search" / "result.json"
    result = json.loads(file.read_text())
    del result["baseline_excess"]
    write_json(file, result)
    assert procedure.run("refine.seeds=3") == ADDED["refine.seeds=3"]


def test_what_is_asked_for_by_a_network_is_that_of_the_one_it_coincides_with(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    procedure.depths = [(2, 2, 2, 2)]
    pretrained = {"pretrain.networks": ("searched",), "pretrain.data.name": "synthetic"}
    setting = {"refine.finalists": 0, "supernet.dilations": (1,)}
    procedure.run(setting)
    run = procedure.open({**setting, "detector_train.lr_per_image": 0.1})
    with pytest.raises(UserError, match=r"baseline \(detector_train.lr_per_image 0.01 -> 0.1\)"):
        repeats.require_no_repeats(run, ["searched/test"])
    run.workdir.release()
    run = procedure.open({**setting, **pretrained})
    with pytest.raises(UserError, match=r"pretrain.networks: baseline is not in it"):
        crnas.pretrain(run, "searched")
    run.workdir.release()


def test_a_finished_operation_supernet_needs_no_stage_supernet(procedure):
    shutil.rmtree(procedure.folder / "stage_supernet")
    run = procedure.open()
    procedure.done.clear()
    crnas.train_supernet(run, "operation")
    assert procedure.done == []
    run.workdir.release()


def test_a_scale_permuted_baseline_has_the_operation_search_alone(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    done = procedure.run(PERMUTED)
    finalists = {step for step in done if step.startswith("finalists/")}
    # Those of two codes, and the network without dilation, each with its detections.
    assert sum(not step.endswith("/val") for step in finalists) == 3
    # Equal scores choose the smaller code, that of ones: the baseline's network.
    assert done == OPERATIONS | finalists | {"baseline", "baseline/test"}
    result = procedure.result
    assert {"operation_search", "baseline", "searched", "decision"} <= set(result)
    assert not {"stage_search", "stage_only"} & set(result)
    assert [len(rows) for rows in result["finalists"].values()] == [3]
    assert procedure.run(PERMUTED) == set()
    # Networks that differ in dilations alone are told apart.
    # After five numbers of each of eight blocks come dilations, where there are some.
    monkeypatch.setattr(_Scores, "ap_of", staticmethod(lambda code: sum(code[40:]) / 100))
    procedure.folder = tmp_path / "dilated"
    searched = {step for step in procedure.run(PERMUTED) if step.startswith("searched")}
    assert searched == {step for step in RUNG if step.startswith("searched")}
    assert procedure.result["searched"]["arch"]["dilations"] == [2] * 8
    assert procedure.run(PERMUTED | {"supernet.tie": "block"}, redo=True) >= OPERATIONS


def test_without_finalists_it_is_the_papers_procedure(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    # Whatever else is asked for, and however many codes the search ranks.
    done = procedure.run({"refine.finalists": 0, "refine.operation_finalists": 2})
    roles = {f"{role}{part}" for role in ("baseline", "searched") for part in ("", "/test")}
    assert done == SUPERNETS | SEARCHES | roles
    result = procedure.result
    assert result["returned"] == result["decision"]["network"] == "searched"
    assert result["decision"]["probability"] is None
    assert "no finalists were asked for" in result["decision"]["reason"]
    assert "stage_only" not in result


def test_only_what_a_command_needs_is_asked_for(procedure):
    run = procedure.open("detector_train.lr_per_image=0.1")
    repeats.require_no_repeats(run, ["stage_search"])
    with pytest.raises(UserError, match=r"baseline \(detector_train.lr_per_image 0.01 -> 0.1\)"):
        repeats.require_no_repeats(run, ["baseline"])
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
    baseline = {step for step in ALONE if step.startswith(("baseline", "finalists/2-2-2-2"))}
    for start, steps_from in (("baseline", baseline), ("searched", ALONE - baseline)):
        procedure.run(redo=True)
        for digest, done in (("one", steps_from), ("one", set()), ("two", steps_from)):
            monkeypatch.setattr(run_module, "weights_digest", lambda _, digest=digest: digest)
            monkeypatch.setattr(run_module, "require_weights", lambda *_: None)
            assert procedure.run(f"init_from.{start}='folder'", redo=True) == done


def test_a_latency_that_nothing_has_is_found_before_any_training(tmp_path, monkeypatch):
    procedure = Procedure(tmp_path / "run", monkeypatch)
    measured = []

    def milliseconds(_, arch):
        measured.append(arch.depths)
        return 10.0 + arch.depths[0]

    monkeypatch.setattr(limits.LatencyMeter, "milliseconds", milliseconds)
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
    assert begun == ALL
    assert {keys.row_of(step) for step in ALL} == {
        row
        for row in READS
        if not row.endswith("pretrain") and not row.startswith(("ranking", "architecture"))
    }
