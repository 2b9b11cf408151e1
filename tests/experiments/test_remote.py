"""What a worker refuses: another version of the package, other data, a step that takes too much."""

import shutil
import types

import pytest

from configs import quickstart
from crnas_jax.errors import UserError
from crnas_jax.experiments import remote, workers
from crnas_jax.experiments.run import open_run
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.executors.local import LocalExecutor, WorkerOptions, make_slots
from crnas_jax.settings import models as model_settings

CHANGES = {
    "crnas_jax": lambda arguments: arguments.update(version="0.0"),
    "data.val": lambda arguments: arguments["digests"]["val"].update(images="other"),
}


def _task(tmp_path, **options):
    config = quickstart.get_config()
    config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
    run = open_run(config, tmp_path, dry=True)
    return workers.task(run, config, model_settings.baseline(config), 0, "val", **options)


def test_a_step_that_takes_too_much_memory_fails_before_it_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "step_memory", lambda config, job: 2e9)
    monkeypatch.setattr(remote, "train", lambda *_: pytest.fail("it was trained"))
    arguments = _task(tmp_path, max_memory=1.9)["arguments"]
    value = remote.train_network(**arguments, folder=str(tmp_path / "one"), earlier=[])
    assert value == {"failure": "memory: a step takes more than 1.9 GB"}


def test_an_attempt_takes_the_place_of_what_its_step_has_begun(tmp_path):
    folder = tmp_path / "baseline"
    for path, text in ((folder, "begun"), (folder / "attempts" / "1", "whole")):
        (path / "checkpoints" / text).mkdir(parents=True)
        (path / "metrics.jsonl").write_text(text)
    (folder / "attempts" / "1" / "detections.json").write_text("[]")
    (folder / "attempt.json").write_text('{"folder": "1", "split": "val"}')
    run = types.SimpleNamespace(path=tmp_path)
    for _ in range(2):
        assert workers.adopt(run, "baseline")
        assert (folder / "metrics.jsonl").read_text() == "whole"
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["whole"]
        assert not (folder / "attempts").exists()
        assert workers.detections_ahead(run, "baseline", "val") == []


def test_an_attempt_goes_on_from_the_newest_checkpoint_of_all(tmp_path, monkeypatch):
    earlier = [tmp_path / name for name in "321"]  # newest attempts first
    for attempt, steps in zip(earlier, ((4,), (6, 9), ()), strict=True):
        for step in steps:
            (attempt / "checkpoints" / str(step)).mkdir(parents=True)
            (attempt / "checkpoints" / str(step) / "array").write_text(str(step))
            (attempt / "checkpoints" / f"{step}.sha256").write_text("digest")
    (earlier[1] / "metrics.jsonl").write_text("rows")
    folder = tmp_path / "4"
    folder.mkdir()
    copy = shutil.copytree

    def removed_meanwhile(source, target):
        if source.name == "6":
            raise shutil.Error([("array", "array", "gone")])
        return copy(source, target)

    monkeypatch.setattr(shutil, "copytree", removed_meanwhile)
    remote.take_over(folder, earlier)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["9", "9.sha256"]
    assert (folder / "metrics.jsonl").read_text() == "rows"
    remote.take_over(folder, earlier[::-1])  # it has its own by now
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == names


@pytest.mark.parametrize("field", CHANGES)
def test_a_worker_unlike_the_controller_ends_the_search_in_one_line(tmp_path, field):
    task = _task(tmp_path)
    CHANGES[field](task["arguments"])
    slots = make_slots(WorkerOptions("cpu", workers=1))
    jobs = Jobs(LocalExecutor(slots, tmp_path / "logs"))
    jobs.begin("one", task, tmp_path / "one")
    with pytest.raises(UserError, match=f"^worker: {field}: .* controller has") as error:
        jobs.wait(120)
    jobs.close()
    assert len(str(error.value).splitlines()) == 1
