"""In which order many subnets run on one mini-batch so that what they have in common runs once.

Subnets are the leaves of a tree whose edges are blocks. The leaves are visited depth first: at each
only the blocks behind the point where its path leaves that of the leaf before it are run. What
stands at that point is at hand where a stage begins or where the path before ended; inside a stage
it was put into a slot when it was computed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# For each stage what its blocks are: equal beginnings of equal entries compute the same.
Path = Sequence[Sequence]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is run at each visit; rows are visits.

    Attributes:
      order: int32 [visits], which subnet of the list is visited.
      start: int32 [visits, stages], the first block that is run; the stage's depth for none.
      load: int32 [visits, stages], the slot that holds the input of that block; -1 where that is
        what the stage before puts out (first block) or what this stage put out at the visit before.
      save: int32 [visits, places], the slot into which the output of a block goes, stage after
        stage; -1 for none.
    """

    order: np.ndarray
    start: np.ndarray
    load: np.ndarray
    save: np.ndarray

    def steps(self, first: int, number: int) -> dict[str, np.ndarray]:
        """The rows of `start`, `load` and `save` of some visits."""
        rows = slice(first, first + number)
        return {"start": self.start[rows], "load": self.load[rows], "save": self.save[rows]}

    def blocks(self, paths: Sequence[Path]) -> int:
        """How many blocks are run in all."""
        depths = np.array([[len(stage) for stage in paths[index]] for index in self.order])
        return int((depths - self.start).sum())


def schedule(paths: Sequence[Path], places: Sequence[int], slots: int) -> Schedule:
    """The visits of a list of subnets.

    Args:
      paths: of the subnets.
      places: most blocks of each stage.
      slots: of each stage; where there are too few, a stage is run again from its beginning.
    """
    order = sorted(range(len(paths)), key=lambda index: paths[index])
    shape = (len(paths), len(places))
    start, load = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    save = np.full((len(paths), sum(places)), -1, np.int32)
    offsets = np.cumsum([0, *places])
    needed: dict[tuple[int, int, int], list[int]] = {}  # (stage, visit, block): visits that load it
    ran = np.zeros(sum(places), np.int32)  # the visit that last ran the block at each place
    before: Path = [()] * len(places)
    for visit, index in enumerate(order):
        path = paths[index]
        stage = next((s for s, (a, b) in enumerate(zip(before, path, strict=True)) if a != b), None)
        if stage is None:
            start[visit] = [len(blocks) for blocks in path]
            continue
        common = _common(before[stage], path[stage])
        start[visit, :stage] = [len(blocks) for blocks in path[:stage]]
        start[visit, stage] = common
        if 0 < common < len(before[stage]):
            key = (stage, int(ran[offsets[stage] + common - 1]), common - 1)
            needed.setdefault(key, []).append(visit)
        for later in range(stage, len(places)):
            first = offsets[later]
            ran[first + start[visit, later] : first + len(path[later])] = visit
        before = path
    free = [[0] * slots for _ in places]  # the visit from which on each slot may be written
    for (stage, visit, block), loads in sorted(needed.items(), key=lambda item: item[0][1]):
        slot = next((s for s, since in enumerate(free[stage]) if since <= visit), None)
        if slot is None:
            start[loads, stage] = 0
            continue
        free[stage][slot] = loads[-1]
        save[visit, offsets[stage] + block] = slot
        load[loads, stage] = slot
    return Schedule(np.array(order, np.int32), start, load, save)


def _common(first: Sequence, second: Sequence) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
