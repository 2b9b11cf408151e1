"""Read batches in an order that depends only on seed and step, ahead of time in grain's threads.

The position in the data is a pure function of the step, so resuming needs no iterator state, and
the order is the same on any number of hosts.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import cv2
import grain
import numpy as np

from crnas_jax.errors import UserError
from crnas_jax.runtime import team
from crnas_jax.runtime.options import check_counts

# The loader's threads keep all cores busy; further threads of OpenCV in each would slow them down.
cv2.setNumThreads(0)
# Keys that keep the random draws of augmentation and order apart.
_AUGMENT, _ORDER = 1, 2
# Enough for one accelerator; each keeps two batches in memory.
_MAX_WORKERS = 16
_ROW_FIELDS = ("image_id", "weight", "scale", "original_size")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records that one step reads.

    Attributes:
      indices: indices of the records in the source, -1 for padding.
      portrait: whether the batch uses the portrait canvas, otherwise the landscape one.
    """

    indices: tuple[int, ...]
    portrait: bool


class Plan:
    """Plan which records each step reads.

    In training the landscape and the portrait images are two endless streams, each shuffled anew
    when it is through, and cut into full batches; what is left of a stream at the end of an epoch
    begins its next one. So every image is read equally often. Of a group smaller than a batch each
    epoch has one padded batch. The batches of an epoch are shuffled. In evaluation each image is
    read once, either in order or shuffled, so that the first mini-batches represent the split.
    """

    def __init__(
        self, sizes: np.ndarray, batch_size: int, seed: int | None, keep_all: bool = False
    ):
        """Divide the images into landscape and portrait.

        Args:
          sizes: heights and widths of the images, [images, 2].
          batch_size: number of images in a global batch.
          seed: seed of the order; None reads all images in order.
          keep_all: whether there is one epoch with every image in it, its last batches padded;
            always so without a seed.

        Raises:
          UserError: there are no images.
        """
        if not len(sizes):
            raise UserError("data", "images", "the split has none", "give at least one image")
        portrait = sizes[:, 0] > sizes[:, 1]
        self._groups = [
            (flag, np.flatnonzero(portrait == flag))
            for flag in (False, True)
            if (portrait == flag).any()
        ]
        self._batch_size, self._seed = batch_size, seed
        self._keep_all = keep_all or seed is None
        self.epoch = functools.lru_cache(maxsize=4)(self._epoch)
        self._orders = functools.lru_cache(maxsize=4)(self._draw_orders)

    def __len__(self) -> int:
        """Return the number of batches in the first epoch."""
        return len(self.epoch(0))

    def num_batches(self, num_images: int) -> int:
        """Return how many batches so many images fill: one at least, an epoch at most."""
        return min(max(num_images // self._batch_size, 1), len(self))

    def __getitem__(self, step: int) -> Batch:
        epoch = int(step / self._batches_before(1.0))
        # Epochs differ by a batch or two.
        while self._first_step(epoch) > step:
            epoch -= 1
        while self._first_step(epoch + 1) <= step:
            epoch += 1
        return self.epoch(epoch)[step - self._first_step(epoch)]

    def num_steps(self, epochs: float) -> int:
        """Return the number of training steps in which each image is read `epochs` times."""
        return max(round(self._batches_before(epochs)), 1)

    def first_indices(self, num_batches: int) -> list[int]:
        """Return the indices of the records in the first batches of the first epoch."""
        batches = self.epoch(0)[:num_batches]
        return [index for batch in batches for index in batch.indices if index >= 0]

    def _batches_before(self, epochs):
        return sum(
            epochs * max(len(members) / self._batch_size, 1.0) for _, members in self._groups
        )

    def _first_step(self, epoch):
        if self._keep_all:
            return epoch * len(self)
        return sum(self._first_batch(len(members), epoch) for _, members in self._groups)

    def _first_batch(self, num_images, epoch):
        """Count the full batches that a stream has given before an epoch."""
        return epoch * num_images // self._batch_size if num_images > self._batch_size else epoch

    def _draw_orders(self, epoch):
        """Draw the order of each group in an epoch; return them with the generator."""
        rng = np.random.default_rng([self._seed, _ORDER, epoch])
        return [rng.permutation(members) for _, members in self._groups], rng

    def _epoch(self, epoch: int) -> list[Batch]:
        if self._seed is None:
            orders, rng = [members for _, members in self._groups], None
        else:
            orders, rng = self._draw_orders(epoch)
        batches = []
        for group, (portrait, members) in enumerate(self._groups):
            order, carry = orders[group], 0
            if not self._keep_all and len(members) > self._batch_size:
                end = (epoch + 1) * len(members) // self._batch_size * self._batch_size
                carry = epoch * len(members) % self._batch_size
                if carry:
                    order = np.concatenate([self._orders(epoch - 1)[0][group][-carry:], order])
                order = order[: end - epoch * len(members) + carry]
            for start in range(0, len(order), self._batch_size):
                indices = tuple(int(i) for i in order[start : start + self._batch_size])
                batches.append(Batch(indices + (-1,) * (self._batch_size - len(indices)), portrait))
        return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How batches are read ahead; it changes speed and memory, never a batch.

    Attributes:
      workers: threads that decode images, each a batch; 0 for one on each core at hand, at most 16.
      read_ahead: batches that are read before they are needed; 0 for two by each worker.
    """

    workers: int = 0
    read_ahead: int = 0

    def __post_init__(self):
        check_counts(self, "workers", "read_ahead", least=0)

    @property
    def num_workers(self) -> int:
        """Number of threads."""
        return self.workers or min(_num_cores(), _MAX_WORKERS)

    @property
    def num_batches(self) -> int:
        """Number of batches that are read ahead."""
        return self.read_ahead or 2 * self.num_workers


def _num_cores():
    """Return the number of cores that this process may use, which macOS does not tell."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


_reading = ReadOptions()


def read_with(options: ReadOptions) -> None:
    """Read batches this way from now on, in all of this process."""
    global _reading
    _reading = options


class _Steps:
    """The part of each step's batch that one host reads, as a source for grain."""

    def __init__(self, source, plan, row, seed, num_steps, host, hosts):
        self._source, self._plan, self._row = source, plan, row
        self._seed, self._num_steps, self._host, self._hosts = seed, num_steps, host, hosts

    def __len__(self):
        return self._num_steps

    def __getitem__(self, step):
        batch = self._plan[step]
        host_batch_size = len(batch.indices) // self._hosts
        start = self._host * host_batch_size
        indices = batch.indices[start : start + host_batch_size]
        # Images that are placed in the batch at once are not copied into it.
        has_canvases = hasattr(self._row, "canvases")
        images = self._row.canvases(len(indices), batch.portrait) if has_canvases else None
        rows = []
        for place, index in enumerate(indices):
            # A padding row repeats the first image of the batch at weight 0.
            record = self._source[index if index >= 0 else batch.indices[0]]
            rng = self._rng(step, int(record["image_id"]))
            canvas = (images[place],) if has_canvases else ()
            row = self._row(record, batch.portrait, rng, *canvas)
            rows.append({**row, "weight": np.float32(index >= 0)})
        names = [name for name in rows[0] if name != "image" or not has_canvases]
        result = {name: np.stack([row[name] for row in rows]) for name in names}
        return {"image": images, **result} if has_canvases else result

    def _rng(self, step, image_id):
        """Return the generator of one image in one step, whatever its place in the batch."""
        return np.random.default_rng([self._seed, _AUGMENT, step, image_id % 2**32])


def batches(
    source,
    plan: Plan,
    row: Callable[[dict, bool, np.random.Generator], dict],
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this host's rows of the batches of steps `start` to `stop` - 1.

    Several hosts share each batch evenly, see `all_rows`.

    Args:
      source: random access to records, a `crnas_jax.data.source.DetectionSource` or
        `ClassificationSource`.
      plan: records that each step reads.
      row: function of (record, portrait, generator) that makes a row of the batch, such as
        `transforms.DetectionRows`.
      seed: seed of the random draws in `row`.
      start: first step.
      stop: step after the last one; None for the end of the first epoch.

    Yields:
      The arrays that `row` returns, stacked to [batch / hosts, ...], and `weight` float32
      [batch / hosts], 0 for padding rows; NumPy.
    """
    stop, hosts = len(plan) if stop is None else stop, team.current()
    steps = _Steps(source, plan, row, seed, stop, hosts.index, hosts.count)
    options = grain.ReadOptions(
        num_threads=min(_reading.num_workers, _reading.num_batches),
        prefetch_buffer_size=_reading.num_batches,
    )
    yield from grain.MapDataset.source(steps)[start:stop].to_iter_dataset(options)


def all_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what results are assigned to images by, for the rows of all hosts in the plan's order.

    Every host calls it with its own rows of the batch.

    Returns:
      `image_id`, `weight`, and of a detection batch `scale` and `original_size`.
    """
    own = {name: batch[name] for name in _ROW_FIELDS if name in batch}
    if not team.is_joint():
        return own
    parts = team.gather(own)
    return {name: np.concatenate([part[name] for part in parts]) for name in own}
