"""From a scale-permuted network back to a code of its space."""

import itertools

from scipy.optimize import linear_sum_assignment

from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.spaces.scale_permuted import ScalePermutedSpace
from crnas_jax.spaces.space import Code

_FORBIDDEN = 1e6


def encode(space: ScalePermutedSpace, arch: ScalePermuted) -> Code:
    """Return a code that decodes to a network.

    Of several codes one with small offsets. Blocks that the network lacks become blocks that reach
    no output: where the order is searched, the last of the intermediate ones.

    Args:
      space: the space.
      arch: the network; what is not searched is as in the space's base.

    Raises:
      UserError: no code of the space decodes to it.
    """
    inner = [block for block in arch.blocks if not block.is_output]
    outputs = [block for block in arch.blocks if block.is_output]
    levels = [block.level for block in space.base.blocks[space.num_inner :]]
    if sorted(levels) == sorted(block.level for block in outputs):
        for order in _orders(space, inner, outputs):
            code = _code(space, arch, order, outputs, levels)
            if code is not None and space.decode(code) == arch:
                return code
    problem = f"no {space.noun} of the space is this network"
    raise UserError("search space", "arch", problem, "widen the space, or take another base")


def _orders(space, inner, outputs):
    """Yield orders of the intermediate blocks: by place its label and its block; None if dead."""
    num_inner = space.num_inner
    num_dead = num_inner - len(inner)
    if num_dead < 0:
        return
    if "permutations" in space.parts:
        blocks = [*inner, *[None] * num_dead]
        costs = [
            [_least_offset(space, label, block, outputs) for label in range(num_inner)]
            for block in blocks
        ]
        _, labels = linear_sum_assignment(costs)
        yield list(zip(labels.tolist(), blocks, strict=True))
        return
    for places in itertools.combinations(range(num_inner), len(inner)):
        blocks = [None] * num_inner
        for place, block in zip(places, inner, strict=True):
            blocks[place] = block
        yield list(enumerate(blocks))


def _least_offset(space, label, block, outputs):
    options = _adjustments(space, label, block, outputs)
    return min((abs(space.offsets[offset]) for offset, _ in options), default=_FORBIDDEN)


def _adjustments(space, label, block, outputs):
    """List the (offset, kind) with which a block of the base is another, or dead for None."""
    base = space.base.blocks[label]
    offsets, kinds = space.allowed_offsets[label], range(len(space.kinds))
    if "adjustments" not in space.parts:
        offsets, kinds = [space.offsets.index(0)], [space.kinds.index(base.kind)]
    shapes = {(output.level, output.kind) for output in outputs}
    found = []
    for offset, kind in itertools.product(offsets, kinds):
        shape = base.level + space.offsets[offset], space.kinds[kind]
        if shape not in shapes if block is None else shape == (block.level, block.kind):
            found.append((offset, kind))
    return found


def _code(space, arch, order, outputs, levels):
    """Return the code of an order; None where there is none."""
    num_stem, num_inner = len(arch.stem), space.num_inner
    adjusted = {}
    for label, block in order:
        options = _adjustments(space, label, block, outputs)
        if not options:
            return None
        adjusted[label] = min(options, key=lambda option: abs(space.offsets[option[0]]))
    code = []
    if "permutations" in space.parts:
        code += [label for label, _ in order]
        code += [levels.index(output.level) for output in outputs]
    if "connections" in space.parts:
        places = [place for place, (_, block) in enumerate(order) if block is not None]
        places += range(num_inner, space.num_blocks)
        index = {num_stem + i: num_stem + place for i, place in enumerate(places)}
        pairs = [readable[-2:] for readable in space.readable]
        for place, block in zip(places, arch.blocks, strict=True):
            pairs[place] = sorted(index.get(parent, parent) for parent in block.parents)
            if not set(pairs[place]) <= set(space.readable[place]):
                return None
        code += itertools.chain(*pairs)
    if "adjustments" in space.parts:
        kind_of = {output.level: space.kinds.index(output.kind) for output in outputs}
        code += [adjusted[label][0] for label in range(num_inner)]
        code += [adjusted[label][1] for label in range(num_inner)]
        code += [kind_of[level] for level in levels]
    return tuple(code)
