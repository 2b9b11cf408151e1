"""What some number of hosts and devices computes, written down to be compared.

python tests/parallel/agreement.py JSON: see `main` for the fields. Tests run it in processes of
their own, because a process belongs to one team for good.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
from helpers import fixed_proposals, tiny_options  # noqa: E402

from crnas_jax.data import loader  # noqa: E402
from crnas_jax.data.coco import CocoSource  # noqa: E402
from crnas_jax.data.tfds import TfdsSource  # noqa: E402
from crnas_jax.data.transforms import DetectionRows, ImageSize  # noqa: E402
from crnas_jax.export.weights import load_weights, save_weights  # noqa: E402
from crnas_jax.models.build import Detector  # noqa: E402
from crnas_jax.models.heads.box_head import BoxHeadOptions  # noqa: E402
from crnas_jax.models.heads.rpn import RPNOptions  # noqa: E402
from crnas_jax.models.rcnn import DetectorOptions  # noqa: E402
from crnas_jax.models.supernet.banks import SupernetSpec  # noqa: E402
from crnas_jax.parallel import hosts  # noqa: E402
from crnas_jax.parallel.cluster import Cluster  # noqa: E402
from crnas_jax.parallel.mesh import make_mesh, put_parts  # noqa: E402
from crnas_jax.parallel.process import speed_up_compilation  # noqa: E402
from crnas_jax.runtime import team  # noqa: E402
from crnas_jax.search.journal import Journal  # noqa: E402
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer  # noqa: E402
from crnas_jax.training.job import TrainingJob, TrainOptions  # noqa: E402
from crnas_jax.training.loop import train  # noqa: E402
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer  # noqa: E402
from crnas_jax.training.step import Trainer  # noqa: E402

BATCH_SIZE, SIZE = 8, ImageSize(96, 128)
ROWS = DetectionRows(SIZE, max_objects=32, flip=True)
TINY = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1,), (1, 3), (1,)), (1, 2))
SUPERNET = SupernetSpec(
    "resnet_basic", (16, 32, 64, 64), ((1, 2), (1,), (1, 2), (1,)), stage_sharing="prefix"
)
CODES = [(1, 1, 1, 1), (1, 1, 2, 1), (2, 1, 1, 1), (2, 1, 2, 1)]


def detector():
    """Return a supernet that learns a few photographs by heart."""
    sizes = (8.0, 16.0, 32.0, 64.0, 128.0)
    rpn = RPNOptions(sizes, num_samples=128, pre_nms=(200, 200), post_nms=(150, 100))
    box = BoxHeadOptions(head_channels=128, num_samples=64, canonical_size=56.0, nms_candidates=200)
    return Detector(SUPERNET, DetectorOptions(3, 32, rpn, box))


def training(source, num_devices, epochs, log_every, fsdp=1):
    """Return a training of it."""
    optimizer = OptimizerOptions(0.005, schedule="cosine", warmup_steps=40, clip_norm=10.0)
    options = TrainOptions(
        epochs, BATCH_SIZE, optimizer, log_every=log_every, num_devices=num_devices, fsdp=fsdp
    )
    return TrainingJob("training", detector(), source, ROWS, options)


def steps(mesh):
    """Take three steps with proposals and samples fixed; return losses, and the state's numbers."""
    model = Detector(TINY, tiny_options())
    trainer = Trainer(model, make_optimizer(OptimizerOptions(), BATCH_SIZE, 10), mesh, 0)
    batch, here = fixed_proposals(BATCH_SIZE), team.current()
    own = BATCH_SIZE // here.count
    batch = {name: rows[here.index * own :][:own] for name, rows in batch.items()}
    state, losses = trainer.init(), []
    for step in range(3):
        parts = put_parts(trainer.mesh, batch, 1)
        state, metrics = trainer.step(state, parts, model.sample(0, step))
        losses.append(hosts.fetch(metrics)["loss"])
    leaves = jax.tree.leaves(hosts.fetch(state))
    return np.array(losses), np.concatenate([np.ravel(leaf).astype(float) for leaf in leaves])


def order(source, job):
    """Return image ids, sums of what else is in the rows, and paths of the first steps."""
    plan = loader.Plan(source.sizes, BATCH_SIZE, 0)
    ids, sums = [], []
    for batch in loader.batches(source, plan, ROWS, 0, 0, 4):
        ids.append(loader.all_rows(batch)["image_id"])
        names = ("image", "boxes", "labels", "area", "crowd", "valid")
        own = [batch[name].reshape(len(batch[name]), -1).sum(1, dtype=float) for name in names]
        sums.append(np.concatenate(team.gather(np.stack(own, 1))))
    paths = [np.concatenate(jax.tree.leaves(job.model.sample(0, step))) for step in range(4)]
    return np.stack(ids), np.stack(sums), np.stack(paths)


def mean_loss(job, folder):
    """Train for an epoch on photographs; return the mean of all steps' losses."""
    train(job, folder)
    team.decide(lambda: None)  # the log is written
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.mean([row["loss"] for row in rows])


def scores(source, num_devices, weights, folder):
    """Return the AP of all allocations with inherited weights."""
    variables, _ = load_weights(weights)
    options = ScoreOptions(BATCH_SIZE, SIZE, calibration_images=8, num_devices=num_devices)
    journal = Journal(folder / "journal.jsonl", "")
    scorer = SubnetScorer(detector(), variables, source, source, options, journal, folder / "cache")
    found = scorer.score("stage", CODES, lambda code, _: SUPERNET.choice(code))
    return np.array([score.value for score in found])


def main(fields):
    """Do what is asked.

    Args:
      fields: `num_devices`; `images`, a folder; `few` and `many`, annotation files of photographs
        in it, of which the few are learnt by heart; `records`, folder of the many as records, to
        be read in their place; `weights`, folder of the trained supernet;
        `output`, file to write and folder of the work; `do`, "train" or "compare"; `cluster`,
        fields of `Cluster`, for one of several hosts.
    """
    speed_up_compilation()
    if "cluster" in fields:
        hosts.connect(Cluster(**fields["cluster"]), 30)
    few, many = (CocoSource(fields["images"], fields[name]) for name in ("few", "many"))
    if "records" in fields:
        many = TfdsSource(fields["records"], "train")
    output, num_devices = pathlib.Path(fields["output"]), fields["num_devices"]
    if fields["do"] == "train":
        job = training(few, num_devices, 200.0, 50)
        variables = train(job, output.with_suffix(""))
        save_weights(fields["weights"], job.model, variables)
        return
    job = training(many, num_devices, 1.0, 1)
    losses, leaves = steps(make_mesh(BATCH_SIZE, num_devices))
    ids, sums, paths = order(many, job)
    result = {
        "losses": losses,
        "leaves": leaves,
        "ids": ids,
        "sums": sums,
        "paths": paths,
        "mean_loss": mean_loss(job, output.with_suffix("")),
        "scores": scores(few, num_devices, fields["weights"], output.with_suffix("")),
    }
    if team.is_primary():
        np.savez(output, **result)
    if "cluster" in fields:
        team.current().leave(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
