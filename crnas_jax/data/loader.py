"""Batches in an order that depends on seed and step alone, read ahead by grain's threads.

The position in the data is a pure function of the step, so resuming needs no iterator state and
gives the same order on any number of hosts.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import cv2
import grain
import numpy as np

from crnas_jax.errors import UserError

# OpenCV's own threads inside the loader's threads only get in each other's way.
cv2.setNumThreads(0)
_AUGMENT, _ORDER = 1, 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step reads: record indices (-1 for padding) on one canvas."""

    indices: tuple[int, ...]
    portrait: bool


class Plan:
    """Which records each step reads.

    In training every epoch shuffles the landscape and the portrait images, cuts each into whole
    batches (the remainder, another one each epoch, is left out; of fewer images than a batch, one
    padded batch is made) and shuffles the batches. In evaluation every image comes once, in order
    or, so that the first mini-batches stand for all, shuffled.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, seed: int | None, whole: bool = False):
        """Args: [images, 2] heights and widths; images in a global batch; seed of the order, None
        for none; whether no image is left out (without a seed none is).
        """
        if not len(sizes):
            raise UserError("data", "images", "the split has none", "give at least one image")
        portrait = sizes[:, 0] > sizes[:, 1]
        self._groups = [
            (flag, np.flatnonzero(portrait == flag))
            for flag in (False, True)
            if (portrait == flag).any()
        ]
        self._batch_size, self._seed, self._whole = batch_size, seed, whole or seed is None
        self.epoch = functools.lru_cache(maxsize=4)(self._epoch)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.epoch(0))

    def __getitem__(self, step: int) -> Batch:
        return self.epoch(step // len(self))[step % len(self)]

    def first(self, batches: int) -> list[int]:
        """Indices of the records in the first batches of the first epoch."""
        return [index for batch in self.epoch(0)[:batches] for index in batch.indices if index >= 0]

    def _epoch(self, epoch: int) -> list[Batch]:
        rng = None if self._seed is None else np.random.default_rng([self._seed, _ORDER, epoch])
        batches = []
        for portrait, members in self._groups:
            order = members if rng is None else rng.permutation(members)
            stop = len(order)
            if not self._whole and stop > self._batch_size:
                stop -= stop % self._batch_size
            for start in range(0, stop, self._batch_size):
                indices = tuple(int(i) for i in order[start : start + self._batch_size])
                batches.append(Batch(indices + (-1,) * (self._batch_size - len(indices)), portrait))
        return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


class _Steps:
    """The part of each step's batch that one host reads, as a grain source."""

    def __init__(self, source, plan, row, seed, steps, host, hosts):
        self._source, self._plan, self._row = source, plan, row
        self._seed, self._steps, self._host, self._hosts = seed, steps, host, hosts

    def __len__(self):
        return self._steps

    def __getitem__(self, step):
        batch = self._plan[step]
        share = len(batch.indices) // self._hosts
        rows = []
        for index in batch.indices[self._host * share : (self._host + 1) * share]:
            # A padding row repeats some image of the batch at weight 0.
            record = self._source[index if index >= 0 else batch.indices[0]]
            row = self._row(record, batch.portrait, self._rng(step, int(record["image_id"])))
            rows.append({**row, "weight": np.float32(index >= 0)})
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _rng(self, step, image_id):
        """Of one image in one step, wherever in the batch it stands."""
        return np.random.default_rng([self._seed, _AUGMENT, step, image_id % 2**32])


def batches(
    source,
    plan: Plan,
    row: Callable[[dict, bool, np.random.Generator], dict],
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    host: int = 0,
    hosts: int = 1,
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """This host's rows of the batches of steps `start` to `stop`, NumPy.

    Args:
      source: random access to records.
      plan: which records each step reads.
      row: from (record, portrait, generator) to a row, `transforms.DetectionRows` for one.
      seed: of what `row` draws.
      start: first step.
      stop: the step after the last.
      host: index of this process.
      hosts: number of processes; they share each batch evenly.
      threads: that read ahead.
    """
    stop = len(plan) if stop is None else stop
    steps = _Steps(source, plan, row, seed, stop, host, hosts)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    yield from grain.MapDataset.source(steps)[start:stop].to_iter_dataset(options)
