"""SpineNet backbones at inference, stated a second time, in PyTorch.

Written from a description of the paper and its release alone, by someone who had not read the
package's own, which is compared with it.  Plain functions, no modules, nothing clever:
`_plan` lists every convolution of a network, `shapes` reads the parameter shapes off that list,
and `features` runs the list.
"""

from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F

# One convolution with batch normalisation: where its variables are, its size, its stride, whether
# an activation follows.
Conv = namedtuple("Conv", "kernel bn size inputs outputs stride depthwise act")
# One copy of a block: its path, main path of convolutions, units of the squeeze layer (None: there
# is none), and the shortcut: "none", "add" (the input itself) or a Conv (projection).
Repeat = namedtuple("Repeat", "path main squeeze shortcut")
# One block.  `extras` are the blocks added by the zero-out-degree rule; `endpoint` is None or Conv.
Block = namedtuple("Block", "level parents extras resamples repeats endpoint")

B, R, M = "bottleneck", "residual", "mbconv"

# Permuted blocks, the first one has index 2: (level, kind, parents).  The last five are outputs.
TABLES = {
    "spinenet49": [  # zero-out-degree rule: 11 -> 14
        (2, B, (0, 1)),
        (4, R, (0, 1)),
        (3, B, (2, 3)),
        (4, B, (2, 4)),  # 2 to 5
        (6, R, (3, 5)),
        (4, B, (3, 5)),
        (5, R, (6, 7)),
        (7, R, (6, 8)),  # 6 to 9
        (5, B, (8, 9)),
        (5, B, (8, 10)),  # 10, 11
        (4, B, (5, 10)),
        (3, B, (4, 10)),
        (5, B, (7, 12)),
        (7, B, (5, 14)),
        (6, B, (12, 14)),
    ],
    "r0_sp53": [  # zero-out-degree rule: 11 -> 13
        (2, B, (0, 1)),
        (3, B, (0, 1)),
        (3, B, (2, 3)),
        (4, B, (2, 4)),  # 2 to 5
        (4, B, (3, 5)),
        (3, B, (5, 6)),
        (5, B, (4, 7)),
        (4, B, (4, 8)),  # 6 to 9
        (4, B, (8, 9)),
        (4, B, (8, 10)),  # 10, 11
        (3, B, (4, 10)),
        (4, B, (6, 7)),
        (5, B, (8, 13)),
        (7, B, (6, 9)),
        (6, B, (7, 9)),
    ],
    "spinenet49_mobile": [  # zero-out-degree rule: 12 -> 15
        (2, M, (0, 1)),
        (2, M, (1, 2)),
        (4, M, (1, 2)),
        (3, M, (3, 4)),  # 2 to 5
        (4, M, (3, 5)),
        (6, M, (4, 6)),
        (4, M, (4, 6)),
        (5, M, (7, 8)),  # 6 to 9
        (7, M, (7, 9)),
        (5, M, (9, 10)),
        (5, M, (9, 11)),  # 10 to 12
        (4, M, (6, 11)),
        (3, M, (5, 11)),
        (5, M, (8, 13)),
        (7, M, (6, 15)),
        (6, M, (13, 15)),
    ],
}
WIDTHS = {1: 32, 2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
MOBILE_WIDTHS = {0: 8, 1: 16, 2: 24, 3: 40, 4: 80, 5: 112, 6: 112, 7: 112}
ACTIVATIONS = {"relu": F.relu, "swish": F.silu}


def _numbered(path, *rows):
    """Conv 1, 2, ... under `path`; a row is (size, inputs, outputs, stride, depthwise, act)."""
    return [
        Conv((*path, f"conv{n}", "kernel"), (*path, f"bn{n}"), *row)
        for n, row in enumerate(rows, 1)
    ]


def _repeat(path, kind, inputs, width, stride):
    """One copy of a block; `width` is the level's width (a bottleneck puts out four times it)."""
    inner = 6 * inputs if kind == M else width
    outputs = 4 * width if kind == B else width
    rows = [
        (1, inputs, inner, 1, False, True),
        (3, inner, inner, stride, kind == M, True),
        (1, inner, outputs, 1, False, False),
    ]
    if kind == R:
        rows = [(3, inputs, width, stride, False, True), (3, width, width, 1, False, False)]
    shortcut = "add"
    if stride == 2 or inputs != outputs:
        shortcut = (
            "none"
            if kind == M
            else Conv(
                (*path, "downsample_conv", "kernel"),
                (*path, "downsample_bn"),
                1,
                inputs,
                outputs,
                stride,
                False,
                False,
            )
        )
    squeeze = max(1, int(0.2 * inputs)) if kind == M else None
    return Repeat(path, _numbered(path, *rows), squeeze, shortcut)


def _resample(path, mobile, parent_level, parent_channels, parent_width, level, outputs, alpha):
    """The convolutions between a parent and its child, in order of application."""
    if mobile:
        down = [(3, parent_channels, parent_channels, 2, True, True)] * (level - parent_level)
        return _numbered(path, *down, (1, parent_channels, outputs, 1, False, False))
    inner = int(alpha * parent_width)
    down = [(3, inner, inner, 2, False, True)] if parent_level < level else []
    return _numbered(
        path,
        (1, parent_channels, inner, 1, False, True),
        *down,
        (1, inner, outputs, 1, False, False),
    )


def _plan(network, width_scale, alpha, repeats, endpoint_channels):
    """The whole network: (stem Conv, list of Block)."""
    mobile = network == "spinenet49_mobile"
    widths = {
        level: int(base * width_scale)
        for level, base in (MOBILE_WIDTHS if mobile else WIDTHS).items()
    }
    # The 64 filters of the 7x7 stem hold at every width scale.
    row = (3, 3, widths[0], 2, False, True) if mobile else (7, 3, 64, 2, False, True)
    (stem,) = _numbered(("stem",), row)
    table = [(1, M, ()), (2, M, ())] if mobile else [(2, B, ()), (2, B, ())]
    table += TABLES[network]

    blocks, channels, fed = [], [], []  # fed: whether a block has fed another one
    for index, (level, kind, parents) in enumerate(table):
        width = widths[level]
        outputs = 4 * width if kind == B else width
        resamples, extras, endpoint = [], [], None
        inputs, stride = outputs, 1  # the resampling gives the right width already
        if index < 2:  # a stem block
            inputs = channels[-1] if channels else stem.outputs
            stride = 2 if mobile and index == 1 else 1
        for number, parent in enumerate(parents):
            resamples.append(
                _resample(
                    (f"block{index}", f"resample{number}"),
                    mobile,
                    table[parent][0],
                    channels[parent],
                    widths[table[parent][0]],
                    level,
                    outputs,
                    alpha,
                )
            )
        if index >= len(table) - 5:  # an output block
            extras = [
                other
                for other in range(index)
                if not fed[other]
                and other not in parents
                and table[other][0] == level
                and channels[other] == outputs
            ]
            (endpoint,) = _numbered(
                (f"endpoint{level}",), (1, outputs, endpoint_channels, 1, False, True)
            )
        for source in [*parents, *extras]:
            fed[source] = True
        copies = [
            _repeat(
                (f"block{index}", f"repeat{number}"),
                kind,
                inputs if number == 1 else outputs,
                width,
                stride if number == 1 else 1,
            )
            for number in range(1, repeats + 1)
        ]
        blocks.append(Block(level, parents, extras, resamples, copies, endpoint))
        channels.append(outputs)
        fed.append(False)
    return stem, blocks


def shapes(network, width_scale=1.0, alpha=0.5, repeats=1, endpoint_channels=256):
    """{path below "params": shape}.  Each (..., "scale") has a "mean" and a "var" of its shape."""
    stem, blocks = _plan(network, width_scale, alpha, repeats, endpoint_channels)
    copies = [copy for block in blocks for copy in block.repeats]
    convs = [stem] + [conv for block in blocks for part in block.resamples for conv in part]
    convs += [conv for copy in copies for conv in (*copy.main, copy.shortcut)]
    convs += [block.endpoint for block in blocks]
    found = {}
    for conv in convs:
        if isinstance(conv, Conv):
            fan = 1 if conv.depthwise else conv.inputs
            found[conv.kernel] = (conv.size, conv.size, fan, conv.outputs)
            found[(*conv.bn, "scale")] = found[(*conv.bn, "bias")] = (conv.outputs,)
    for copy in copies:
        if copy.squeeze is not None:
            inner = copy.main[1].outputs
            found[(*copy.path, "squeeze", "kernel")] = (inner, copy.squeeze)
            found[(*copy.path, "squeeze", "bias")] = (copy.squeeze,)
            found[(*copy.path, "excite", "kernel")] = (copy.squeeze, inner)
            found[(*copy.path, "excite", "bias")] = (inner,)
    return found


def _flatten(tree, path=()):
    """{path: array} of a nested dict."""
    if not hasattr(tree, "items"):
        return {path: tree}
    return {k: v for name, sub in tree.items() for k, v in _flatten(sub, (*path, name)).items()}


def _nearest(x, cells):
    """Nearest resize of [batch, channels, height, width]: i reads floor(i * in / out)."""
    for axis, out in zip((2, 3), cells, strict=True):
        size = x.shape[axis]
        if size != out:
            x = x.index_select(axis, torch.tensor([i * size // out for i in range(out)]))
    return x


def _pool(x, parent_cells, cells):
    """The resampling max-pool, TensorFlow SAME, settled for each axis by parent / target cells."""
    kernels, strides, pads = [], [], []
    for size, parent, target in zip(x.shape[2:], parent_cells, cells, strict=True):
        kernel = stride = 1
        if parent // target > 2:
            kernel = 3 if parent <= 4 * target else 5
            stride = parent // target // 2 if parent % target == 0 else 2
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        kernels.append(kernel)
        strides.append(stride)
        pads.append((total // 2, total - total // 2))
    x = F.pad(x, (*pads[1], *pads[0]), value=-float("inf"))
    return F.max_pool2d(x, kernels, strides)


@torch.no_grad()
def features(
    network: str,
    variables: dict,
    images: np.ndarray,
    *,
    width_scale=1.0,
    alpha=0.5,
    repeats=1,
    endpoint_channels=256,
    activation="relu",
    epsilon=1e-5,
    dtype=torch.float64,
    dilations=(),
) -> dict[int, np.ndarray]:
    """{3: P3, ..., 7: P7} of images [batch, height, width, 3]; everything in `dtype`, NHWC.

    `activation` ("relu" or "swish") is used as given, by all three networks: pass "swish" for
    the mobile one as published.  `dilations`: of the 3x3 convolutions of each permuted block.
    """
    mobile = network == "spinenet49_mobile"
    stem, blocks = _plan(network, width_scale, alpha, repeats, endpoint_channels)
    expected = shapes(network, width_scale, alpha, repeats, endpoint_channels)
    params, stats = _flatten(variables["params"]), _flatten(variables["batch_stats"])
    assert {path: tuple(np.shape(a)) for path, a in params.items()} == expected, "params differ"
    assert {path: tuple(np.shape(a)) for path, a in stats.items()} == {
        (*path[:-1], name): shape
        for path, shape in expected.items()
        if path[-1] == "scale"
        for name in ("mean", "var")
    }, "batch_stats differ"
    params, stats = (
        {path: torch.from_numpy(np.array(a)).to(dtype) for path, a in tree.items()}
        for tree in (params, stats)
    )
    act = ACTIVATIONS[activation]

    def run(x, conv, dilation=1):
        """Convolution (symmetric padding), batch normalisation, perhaps the activation."""
        if conv.size == 1:
            dilation = 1
        x = F.conv2d(
            x,
            params[conv.kernel].permute(3, 2, 0, 1),
            stride=conv.stride,
            padding=dilation * (conv.size - 1) // 2,
            dilation=dilation,
            groups=conv.inputs if conv.depthwise else 1,
        )
        mean, var = (stats[(*conv.bn, name)][:, None, None] for name in ("mean", "var"))
        scale, bias = (params[(*conv.bn, name)][:, None, None] for name in ("scale", "bias"))
        x = (x - mean) / torch.sqrt(var + epsilon) * scale + bias
        return act(x) if conv.act else x

    def dense(x, path):
        return x @ params[(*path, "kernel")] + params[(*path, "bias")]

    def run_copy(x, copy, dilation):
        """One copy of a block."""
        y = x
        for conv in copy.main:
            y = run(y, conv, dilation)
            if conv.depthwise:  # squeeze-excitation follows the depthwise one
                gate = act(dense(y.mean((2, 3)), (*copy.path, "squeeze")))
                y = y * torch.sigmoid(dense(gate, (*copy.path, "excite")))[:, :, None, None]
        if copy.shortcut != "none":
            y = y + (x if copy.shortcut == "add" else run(x, copy.shortcut))
        return y if mobile else act(y)

    def run_resample(x, convs, cells):
        """One parent brought to the child's cells and width."""
        parent_cells = x.shape[2:]
        for conv in convs[:-1]:
            x = run(x, conv)
        if not mobile:
            x = _pool(x, parent_cells, cells)
        return run(_nearest(x, cells), convs[-1])

    x = torch.from_numpy(np.array(images)).to(dtype).permute(0, 3, 1, 2)
    sides = x.shape[2:]
    x = run(x, stem)
    if not mobile:
        x = F.max_pool2d(x, 3, 2, padding=1)  # torch pads with -inf
    built, pyramid = [], {}
    for index, block in enumerate(blocks):
        cells = tuple(-(-side // 2**block.level) for side in sides)
        if block.parents:
            parts = [
                run_resample(built[parent], convs, cells)
                for parent, convs in zip(block.parents, block.resamples, strict=True)
            ]
            x = act(sum(parts + [built[extra] for extra in block.extras]))
        for copy in block.repeats:
            x = run_copy(x, copy, dilations[index - 2] if dilations and index > 1 else 1)
        assert tuple(x.shape[2:]) == cells, (index, x.shape, cells)
        built.append(x)
        if block.endpoint:
            end = run(x, block.endpoint)
            pyramid[block.level] = end.permute(0, 2, 3, 1).contiguous().numpy()
    return dict(sorted(pyramid.items()))


def draw(found, rng):
    """Random variables for the shapes of `shapes`."""
    trees = {}

    def put(path, value):
        node = trees
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value

    for path, shape in found.items():
        noise = rng.standard_normal(shape)
        if path[-1] == "kernel":
            noise /= np.sqrt(np.prod(shape[:-1]))
        else:
            noise = 0.1 * noise + (path[-1] == "scale")
        put(("params", *path), noise)
        if path[-1] == "scale":
            put(("batch_stats", *path[:-1], "mean"), 0.1 * rng.standard_normal(shape))
            put(("batch_stats", *path[:-1], "var"), rng.uniform(0.5, 1.5, shape))
    return trees
