"""The greedy search of operations as a tree: a column for each block, a box for each code."""

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from crnas_jax.analysis.markup import element
from crnas_jax.search.scores import best

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 46, 34, 38, 8
_TOP = 26


def tree(
    scores: Mapping[tuple, float],
    dilations: Sequence[int],
    beam: int,
    key_of: Callable[[tuple], str | None],
    names: Sequence[str] = (),
) -> Markup:
    """Return the tree as SVG.

    Args:
      scores: AP of each partial code.
      dilations: dilation of each operation.
      beam: number of partial codes that stay after each block.
      key_of: function from a full code to its network's key, None for a partial code.
      names: what each column gives a dilation to; () for blocks in their order.
    """
    columns = [
        [code for code, _ in best(codes, [scores[code] for code in codes])]
        for length in range(1, max(map(len, scores)) + 1)
        if (codes := sorted(code for code in scores if len(code) == length))
    ]
    kept = {code for codes in columns for code in codes[:beam]}
    place = {
        code: (column * (_WIDTH + _GAP_X) + 8, row * (_HEIGHT + _GAP_Y) + _TOP)
        for column, codes in enumerate(columns)
        for row, code in enumerate(codes)
    }
    keys: dict[tuple, list[str]] = {}
    for code in columns[-1]:
        key = key_of(code)
        for length in range(1, len(code) + 1) if key else ():
            keys.setdefault(code[:length], []).append(key)
    parts = [element("title", "Greedy search of dilations")]
    for column in range(len(columns)):
        x = column * (_WIDTH + _GAP_X) + 8 + _WIDTH / 2
        name = names[column] if column < len(names) else f"block {column + 1}"
        parts.append(element("text", name, x=x, y=16, text_anchor="middle"))
    for code, (x, y) in place.items():
        if code[:-1] in place:
            start_x, start_y = place[code[:-1]]
            start_x, middle = start_x + _WIDTH, _HEIGHT / 2
            bend = start_x + _GAP_X / 2
            path = f"M{start_x} {start_y + middle}C{bend} {start_y + middle} {bend} "
            path += f"{y + middle} {x} {y + middle}"
            parts.append(
                element("path", d=path, class_="branch" if code in kept else "branch dropped")
            )
    for code, (x, y) in place.items():
        parts.append(_box(code, x, y, scores[code], dilations, code in kept, keys.get(code)))
    width = len(columns) * (_WIDTH + _GAP_X) - _GAP_X + 16
    height = max(map(len, columns)) * (_HEIGHT + _GAP_Y) + _TOP
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        class_="chart tree",
        role="img",
    )


def _box(code, x, y, score, dilations, is_kept, keys):
    dilation = dilations[code[-1]] if code[-1] < len(dilations) else code[-1]
    listed = " ".join(str(dilations[op]) if op < len(dilations) else f"{op}" for op in code)
    state = "kept" if is_kept else "dropped"
    middle = x + _WIDTH / 2
    return element(
        "g",
        element("title", f"dilations {listed}: AP {100 * score:.1f}, {state}"),
        element(
            "rect", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=4, class_=f"d{min(dilation, 4)}"
        ),
        element("text", f"{dilation}", x=middle, y=y + 14, text_anchor="middle"),
        element("text", f"{100 * score:.1f}", x=middle, y=y + 28, text_anchor="middle"),
        class_=f"box {state}",
        data_network=" ".join(keys) if keys else None,
    )
