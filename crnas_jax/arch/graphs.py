"""Scale-permuted networks as graphs: dead blocks, and one form for all equal networks.

Many block lists are one network: blocks that do not read each other may change places, and a block
that reaches no output adds nothing. Scores belong to networks, so they are kept by `graph_code` of
the canonical form.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted
from crnas_jax.errors import UserError

Code = tuple[int, ...]
# Numbers of a block in a graph's code: level, kind, two parents, whether it is an output.
_NUMBERS = 5


def living(num_stem: int, blocks: Sequence[PermutedBlock]) -> list[int]:
    """List the places of the blocks that reach an output, even through the zero-out-degree rule.

    Blocks of equal level and kind have equal channels, so that rule needs no widths. What only dead
    blocks read feeds nothing, and falls under the rule itself.

    Args:
      num_stem: number of stem blocks, whose indices come first in `parents`.
      blocks: permuted blocks.
    """
    places, read, outputs = [], set(), set()
    for place in reversed(range(len(blocks))):  # children come after their parents
        block = blocks[place]
        shape = (block.level, block.kind)
        if block.is_output or num_stem + place in read or shape in outputs:
            places.append(place)
            read.update(block.parents)
        if block.is_output:
            outputs.add(shape)
    return places[::-1]


def prune(num_stem: int, blocks: Sequence[PermutedBlock]) -> tuple[PermutedBlock, ...]:
    """Leave out the blocks that are not `living`; arguments as there."""
    places = living(num_stem, blocks)
    index = {num_stem + place: num_stem + new for new, place in enumerate(places)}
    return tuple(
        dataclasses.replace(
            blocks[place], parents=tuple(index.get(p, p) for p in blocks[place].parents)
        )
        for place in places
    )


@functools.lru_cache(maxsize=4096)
def canonical(arch: ScalePermuted) -> ScalePermuted:
    """Return the network with its blocks in the canonical order, and parents ascending.

    Two networks have the same canonical form if they are equal up to the order of their blocks: a
    colour refinement with individualisation numbers the blocks, whatever their order was.

    Raises:
      UserError: an output comes before an intermediate block.
    """
    num_inner = require_outputs_last(arch)
    graph = _Graph.of(arch)
    return min(
        (_ordered(arch, graph, colours, num_inner) for colours in _discrete(graph, graph.colours)),
        key=graph_code,
    )


def require_outputs_last(arch: ScalePermuted) -> int:
    """Return the number of intermediate blocks.

    Raises:
      UserError: an output comes before one of them.
    """
    flags = [block.is_output for block in arch.blocks]
    if flags != sorted(flags):
        problem = f"block {len(arch.stem) + flags.index(True)} is an output before other blocks"
        raise UserError("arch", "blocks", problem, "put the outputs last")
    return flags.count(False)


def graph_code(arch: ScalePermuted) -> Code:
    """Return level, kind, parents and `is_output` of every permuted block, as one tuple."""
    kinds = tuple(dict(arch.traits.kinds))
    return tuple(
        number
        for block in arch.blocks
        for number in (
            *(block.level, kinds.index(block.kind), *sorted(block.parents)),
            int(block.is_output),
        )
    )


def with_graph(base: ScalePermuted, code: Code) -> ScalePermuted:
    """Return a network with the graph of a code and everything else from `base`."""
    kinds = tuple(dict(base.traits.kinds))
    blocks = tuple(
        PermutedBlock(level, kinds[kind], (first, second), bool(is_output))
        for level, kind, first, second, is_output in (
            code[start : start + _NUMBERS] for start in range(0, len(code), _NUMBERS)
        )
    )
    return dataclasses.replace(base, blocks=blocks)


@dataclasses.dataclass(frozen=True)
class _Graph:
    """The blocks of a network and their links, by index.

    Attributes:
      colours: what tells blocks apart before their links do, as ranks.
      links: for each kind of link the blocks at its other end: parents, extras, and both backwards.
    """

    colours: tuple[int, ...]
    links: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of(cls, arch):
        nodes, num_stem = arch.nodes(), len(arch.stem)
        parents = [tuple(r.parent for r in node.resamples) for node in nodes]
        extras = [node.extras for node in nodes]
        links = []
        for ends in (parents, extras):
            back = [[] for _ in nodes]
            for index, others in enumerate(ends):
                for other in others:
                    back[other].append(index)
            links += [tuple(ends), tuple(map(tuple, back))]
        kinds = [(0, index, "", False) for index in range(num_stem)]
        kinds += [(1, block.level, block.kind, block.is_output) for block in arch.blocks]
        return cls(_ranks(kinds), tuple(links))


def _ranks(values):
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return tuple(order[value] for value in values)


def _refined(graph, colours):
    """Split colours by the colours at the other ends of links until nothing splits."""
    while True:
        new = _ranks(
            [
                (colour, *(tuple(sorted(colours[o] for o in ends[i])) for ends in graph.links))
                for i, colour in enumerate(colours)
            ]
        )
        if len(set(new)) == len(set(colours)):
            return new
        colours = new


def _discrete(graph, colours):
    """Yield colourings that tell all blocks apart; of equal blocks each comes first once."""
    colours = _refined(graph, colours)
    if len(set(colours)) == len(colours):
        yield colours
        return
    shared = min(colour for colour in colours if colours.count(colour) > 1)
    for index, colour in enumerate(colours):
        if colour == shared:
            pairs = [(other, position != index) for position, other in enumerate(colours)]
            yield from _discrete(graph, _ranks(pairs))


def _ordered(arch, graph, colours, num_inner):
    """Return the network in the order of the colours, as far as its links allow."""
    num_stem, nodes = len(arch.stem), arch.nodes()
    parents, _, extras, _ = graph.links
    order, waiting = list(range(num_stem)), set(range(num_stem, num_stem + num_inner))
    while waiting:
        ready = (index for index in waiting if waiting.isdisjoint(parents[index]))
        order.append(min(ready, key=colours.__getitem__))
        waiting.remove(order[-1])
    outputs = sorted(range(num_stem + num_inner, len(nodes)), key=lambda i: nodes[i].level)
    # The order of outputs decides what the zero-out-degree rule adds: it must add the same.
    for permutation in itertools.permutations(outputs):
        if _adds_the_same(arch, permutation, parents, extras, num_inner):
            break
    order += permutation
    place = {index: new for new, index in enumerate(order)}
    blocks = tuple(
        dataclasses.replace(
            arch.blocks[index - num_stem],
            parents=tuple(sorted(place[parent] for parent in parents[index])),
        )
        for index in order[num_stem:]
    )
    return dataclasses.replace(arch, blocks=blocks)


def _adds_the_same(arch, outputs, parents, extras, num_inner):
    num_stem = len(arch.stem)
    inner = range(num_stem, num_stem + num_inner)
    built, fed = set(), {parent for index in inner for parent in parents[index]}
    shapes = {index: (block.level, block.kind) for index, block in enumerate(arch.blocks, num_stem)}
    stem_shapes = {
        index: (block.level, arch.traits.stem_kind)
        for index, block in enumerate(arch.stem)
        if block.is_parent
    }
    shapes = stem_shapes | shapes
    unused = [index for index in shapes if index < num_stem + num_inner and index not in fed]
    for output in outputs:
        if any(
            parent >= num_stem + num_inner and parent not in built for parent in parents[output]
        ):
            return False
        unused = [index for index in unused if index not in parents[output]]
        added = [index for index in unused if shapes[index] == shapes[output]]
        if sorted(added) != sorted(extras[output]):
            return False
        unused = [index for index in unused if index not in added]
        built.add(output)
    return True
