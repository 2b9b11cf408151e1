"""In which order many subnets run on one mini-batch so that what they share runs once.

Subnets are the leaves of a tree with blocks as edges. The leaves are visited depth first: each
visit runs only the blocks behind the point where its path leaves that of the visit before. The
features at that point are at hand where a stage begins or where the previous path ended; inside a
stage they were put into a slot when they were computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# What each stage's blocks are: equal beginnings of equal entries compute the same.
Path = Sequence[Sequence]


class Visits(NamedTuple):
    """What is run at each visit. A JAX tree: a program takes one row of each array.

    Attributes:
      load: int32 [visits, stages], slot with the input of the first block that is run; -1 where
        that input is the output of the stage before (first block) or this stage's output at the
        visit before.
      save: int32 [visits, places], slot for each block's output, stage after stage; -1 for none.
      start: int32 [visits, stages], the first block that is run; the stage's depth for none.
    """

    load: np.ndarray
    save: np.ndarray
    start: np.ndarray

    def rows(self, first: int, count: int) -> "Visits":
        """Return `count` visits from `first` on."""
        return Visits(*(rows[first : first + count] for rows in self))

    def padded(self, count: int) -> "Visits":
        """Return the visits with rows of zeros up to `count` of them."""
        missing = count - len(self.start)
        return Visits(*(np.pad(rows, ((0, missing), (0, 0))) for rows in self))


class Schedule(NamedTuple):
    """The visits of a list of subnets.

    Attributes:
      order: int32 [visits], index of the visited subnet in the list.
      visits: what is run at each visit.
    """

    order: np.ndarray
    visits: Visits

    def num_blocks(self, paths: Sequence[Path]) -> int:
        """Count the blocks that are run in all."""
        depths = np.array([[len(stage) for stage in paths[index]] for index in self.order])
        return int((depths - self.visits.start).sum())


def schedule(paths: Sequence[Path], places: Sequence[int], num_slots: int) -> Schedule:
    """Plan the visits of a list of subnets.

    Args:
      paths: path of each subnet.
      places: greatest number of blocks in each stage.
      num_slots: slots in each stage; where there are too few, a stage is run again from its
        beginning.
    """
    order = sorted(range(len(paths)), key=lambda index: paths[index])
    shape = (len(paths), len(places))
    start, load = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    save = np.full((len(paths), sum(places)), -1, np.int32)
    offsets = np.cumsum([0, *places])
    needed: dict[tuple[int, int, int], list[int]] = {}  # (stage, visit, block): visits that load it
    last_run = np.zeros(sum(places), np.int32)  # visit that last ran the block at each place
    previous: Path = [()] * len(places)
    for visit, index in enumerate(order):
        path = paths[index]
        pairs = enumerate(zip(previous, path, strict=True))
        stage = next((s for s, (before, now) in pairs if before != now), None)
        if stage is None:
            start[visit] = [len(blocks) for blocks in path]
            continue
        common = _common_length(previous[stage], path[stage])
        start[visit, :stage] = [len(blocks) for blocks in path[:stage]]
        start[visit, stage] = common
        if 0 < common < len(previous[stage]):
            key = (stage, int(last_run[offsets[stage] + common - 1]), common - 1)
            needed.setdefault(key, []).append(visit)
        for later in range(stage, len(places)):
            first = offsets[later]
            last_run[first + start[visit, later] : first + len(path[later])] = visit
        previous = path
    free_from = [[0] * num_slots for _ in places]  # visit from which each slot may be written
    for (stage, visit, block), loads in sorted(needed.items(), key=lambda item: item[0][1]):
        slots = enumerate(free_from[stage])
        slot = next((s for s, since in slots if since <= visit), None)
        if slot is None:
            start[loads, stage] = 0
            continue
        free_from[stage][slot] = loads[-1]
        save[visit, offsets[stage] + block] = slot
        load[loads, stage] = slot
    return Schedule(np.array(order, np.int32), Visits(load, save, start))


def _common_length(first: Sequence, second: Sequence) -> int:
    """Return how many first entries two sequences share."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
