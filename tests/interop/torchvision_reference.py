"""torchvision's models with random weights, as the reference that converted weights must meet.

Weights, biases and batch norm statistics are drawn so that all of them matter, and the detectors'
predictors are scaled so that photographs give dozens of detections. Where torchvision's compiled
operators cannot be loaded (the wheel wants CUDA), `nms` and `roi_align` are the ones below.
"""

import copy
import importlib.util
import itertools
import pathlib
import sys

import numpy as np
import torch

# roi_align runs thousands of small products, and threads that wait for each other make each slow
# on a busy machine: 9 s where one thread takes 0.4 s.
torch.set_num_threads(1)


def nms(boxes, scores, threshold):
    """Return the indices of the boxes that survive greedy suppression, by falling score."""
    order = scores.argsort(descending=True, stable=True)
    overlapping = (torchvision.ops.box_iou(boxes[order], boxes[order]) > threshold).numpy()
    alive = np.ones(len(order), bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~overlapping[index, index + 1 :]
    return order[torch.from_numpy(alive)]


def _bin_weights(start, length, bins, samples, size):
    """Weights [rois, bins, size] of the cells of one axis in each bin's mean, and their range.

    Bilinear interpolation and the mean are separable. So is the rule that a sample more than one
    cell outside counts as zero, while a nearer one moves to the border.
    """
    count = torch.ceil(length / bins) if samples <= 0 else torch.full_like(length, samples)
    steps = torch.arange(max(int(count.max()), 1))
    place = torch.arange(bins)[:, None] + (steps + 0.5) / count.clamp(min=1)[:, None, None]
    place = start[:, None, None] + place * (length / bins)[:, None, None]
    inside = (place >= -1) & (place <= size) & (steps < count[:, None, None])
    place = place.clamp(0, size - 1)
    near = (1 - (place[..., None] - torch.arange(size)).abs()).clamp(min=0) * inside[..., None]
    first, last = place.flatten(1).aminmax(dim=1)
    cells = [slice(int(a), int(b) + 2) for a, b in zip(first, last, strict=True)]
    return near.sum(2) / count.clamp(min=1)[:, None, None], cells


def roi_align(features, rois, scale, height, width, samples, aligned):
    """Mean of bilinear samples in each bin: features [B, C, H, W] to [rois, C, height, width]."""
    if len(rois) == 0:
        return features.new_zeros((0, features.shape[1], height, width))
    start, end = (rois[:, 1:] * scale - 0.5 * aligned).split(2, dim=1)
    length = end - start if aligned else (end - start).clamp(min=1)
    rows, tall = _bin_weights(start[:, 1], length[:, 1], height, samples, features.shape[2])
    columns, wide = _bin_weights(start[:, 0], length[:, 0], width, samples, features.shape[3])
    bins = []
    for i, (image, y, x) in enumerate(zip(rois[:, 0].long(), tall, wide, strict=True)):
        bins.append(rows[i, :, y] @ features[image, :, y, x] @ columns[i, :, x].T)
    return torch.stack(bins)


_FOLDER = pathlib.Path(importlib.util.find_spec("torchvision").origin).parent
_ROI_ALIGN = """roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,
 SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"""
try:
    torch.ops.load_library(_FOLDER / "_C.so")
    _OPERATORS = None
except OSError:
    _OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    _OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _OPERATORS.define(_ROI_ALIGN)
    _OPERATORS.impl("nms", nms, "CPU")
    _OPERATORS.impl("roi_align", roi_align, "CompositeImplicitAutograd")

import torchvision  # noqa: E402
from torchvision.models import detection, mobilenetv2, resnet  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402

if _OPERATORS:
    # Its functions ask first whether the library was loaded; roi_align holds its own name for that.
    torchvision.extension._has_ops = lambda: True
    sys.modules["torchvision.ops.roi_align"]._has_ops = lambda: True


def double(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model that computes in float64."""
    return copy.deepcopy(model).double()


def _randomise(model):
    """Draw weights, biases and statistics that all matter and keep activations' size with depth."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            gain = "relu" if module.bias is None else "linear"  # a norm follows, or none does
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity=gain)
            if module.bias is not None:
                module.bias.normal_(0, 0.1)
    for block in model.modules():
        if isinstance(block, resnet.BasicBlock | resnet.Bottleneck):
            getattr(block, "bn3", block.bn2).weight.mul_(0.15)
        elif isinstance(block, mobilenetv2.InvertedResidual) and block.use_res_connect:
            block.conv[-1].weight.mul_(0.15)


def classifier(name: str, seed: int) -> torch.nn.Module:
    """Return a classifier of 1000 classes in eval mode: a ResNet, a ResNeXt or `mobilenet_v2`."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(torchvision.models, name)(weights=None).eval()
        _randomise(model)
    return model


@torch.no_grad()
def features(name: str, model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Maps c2..c5 of normalised images [B, 3, H, W], strides 4, 8, 16 and 32."""
    if name == "mobilenet_v2":
        stages = [model.features[start:end] for start, end in ((0, 4), (4, 7), (7, 14), (14, 19))]
    else:
        images = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    return list(itertools.accumulate(stages, lambda maps, stage: stage(maps), initial=images))[1:]


def _scene(size=256):
    """Return a stand-in for a normalised photograph [1, 3, size, size]: blobs of all sizes."""
    scene = torch.zeros(1, 3, size, size)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        blobs = 0.6 * torch.randn(1, 1, cells, cells) + 0.2 * torch.randn(1, 3, cells, cells)
        scene += torch.nn.functional.interpolate(blobs, size=(size, size), mode="bilinear")
    return scene


def _standardise(predictor, rows, spread):
    """Centre a linear layer's or 1x1 convolution's outputs on `rows` [n, C], with a deviation."""
    response = rows @ predictor.weight.flatten(1).T
    scale = spread / response.std(0)
    predictor.weight.mul_(scale.reshape(-1, *[1] * (predictor.weight.ndim - 1)))
    predictor.bias.copy_(-response.mean(0) * scale)


def _scale_predictors(model):
    """Spread the outputs over a scene's anchors and regions, most of which become background.

    Otherwise what all regions of a random network have in common decides the class. The scene has
    no padding: the pooling layers keep the scales inferred from the first sizes they see.
    """
    images, head, heads = _scene(), model.rpn.head, model.roi_heads
    sizes = [tuple(images.shape[2:])]
    levels = list(model.backbone(images).values())
    for index, (convolution,) in enumerate(model.backbone.fpn.layer_blocks):
        # Coarse levels stronger: P2, with the most anchors, would otherwise give all proposals.
        scale = (1 + 0.5 * index) / levels[index].std()
        convolution.weight.mul_(scale)
        convolution.bias.sub_(levels[index].mean((0, 2, 3))).mul_(scale)
    pyramid = model.backbone(images)
    rows = torch.cat([head.conv(level)[0].flatten(1).T for level in pyramid.values()])
    _standardise(head.cls_logits, rows, 1.5)
    _standardise(head.bbox_pred, rows, 0.2)

    proposals, _ = model.rpn(ImageList(images, sizes), pyramid)
    rows = heads.box_head(heads.box_roi_pool(pyramid, proposals, sizes))
    classes = heads.box_predictor.cls_score
    _standardise(classes, rows, 2.0)
    _standardise(heads.box_predictor.bbox_pred, rows, 1.0)
    margin = classes(rows)[:, 1:].amax(1) - classes(rows)[:, 0]
    classes.bias[0] += margin.quantile(0.97)
    if heads.has_mask():
        masks = heads.mask_predictor
        rows = heads.mask_head(heads.mask_roi_pool(pyramid, [proposals[0][:50]], sizes))
        rows = masks.relu(masks.conv5_mask(rows)).permute(0, 2, 3, 1).flatten(0, 2)
        _standardise(masks.mask_fcn_logits, rows, 2.0)


def detector(name: str, seed: int, classes: int = 91) -> torch.nn.Module:
    """`fasterrcnn_resnet50_fpn` or `maskrcnn_resnet50_fpn` in eval mode, sampling everything.

    `classes` counts the background. Without pretrained weights torchvision builds it with
    BatchNorm2d of eps 1e-5, not FrozenBatchNorm2d.
    """
    samplers = {"rpn_batch_size_per_image": 2**40, "box_batch_size_per_image": 2**40}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        build = getattr(detection, name)
        model = build(weights=None, weights_backbone=None, num_classes=classes, **samplers).eval()
        _randomise(model)
        _scale_predictors(model)
    return model


@torch.no_grad()
def detect(model: torch.nn.Module, images: torch.Tensor, sizes: list) -> list[dict]:
    """Boxes, labels and scores of each image, best first; `masks` [n, 28, 28] are probabilities.

    `images` [B, 3, H, W] are normalised and padded, `sizes` their true (height, width).
    """
    pyramid = model.backbone(images)
    proposals, _ = model.rpn(ImageList(images, sizes), pyramid)
    found, _ = model.roi_heads(pyramid, proposals, sizes)
    return [{name: v[:, 0] if name == "masks" else v for name, v in one.items()} for one in found]


def paste(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return probabilities [n, height, width] in an image of masks [n, 28, 28]; no threshold."""
    return detection.roi_heads.paste_masks_in_image(masks[:, None], boxes, size)[:, 0]


@torch.no_grad()
def losses(
    model: torch.nn.Module, images: torch.Tensor, sizes: list, targets: list, proposals: list
) -> dict[str, float]:
    """Training losses over all labelled anchors and all proposals, with running statistics.

    `proposals` [P, 4] of each image replace the RPN's, and ground truth is appended to them.
    `targets` hold boxes [G, 4], int64 labels [G] and, for a mask model, masks [G, H, W] of 0 and 1.
    """
    pyramid = model.backbone(images)
    model.train()
    _, first = model.rpn(ImageList(images, sizes), pyramid, targets)
    _, second = model.roi_heads(pyramid, proposals, sizes, targets)
    model.eval()
    return {name: float(loss) for name, loss in (first | second).items()}


def retinanet(name: str, seed: int, classes: int = 91) -> torch.nn.Module:
    """`retinanet_resnet50_fpn` or its `_v2` in eval mode; photographs give dozens of detections."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        build = getattr(detection, name)
        model = build(weights=None, weights_backbone=None, num_classes=classes).eval()
        _randomise(model)
        levels = list(model.backbone(_scene()).values())
        for head, name, spread in (
            (model.head.classification_head, "cls_logits", 1.5),
            (model.head.regression_head, "bbox_reg", 0.3),
        ):
            predictor = getattr(head, name)
            rows = torch.cat([predictor(head.conv(x))[0].flatten(1).T for x in levels])
            scale = spread / rows.std(0)
            predictor.weight.mul_(scale[:, None, None, None])
            predictor.bias.sub_(rows.mean(0)).mul_(scale)
        model.head.classification_head.cls_logits.bias.sub_(7.5)
    return model


@torch.no_grad()
def retina_detect(model: torch.nn.Module, images: torch.Tensor, sizes: list) -> list[dict]:
    """Boxes, labels and scores of each image; arguments as `detect`."""
    outputs, anchors, num_anchors = _retina_outputs(model, images, sizes)
    split = {name: list(values.split(num_anchors, 1)) for name, values in outputs.items()}
    anchors = [list(boxes.split(num_anchors)) for boxes in anchors]
    return model.postprocess_detections(split, anchors, sizes)


@torch.no_grad()
def retina_losses(
    model: torch.nn.Module, images: torch.Tensor, sizes: list, targets: list
) -> dict[str, float]:
    """Training losses with running statistics; `targets` hold boxes [G, 4], int64 labels [G]."""
    outputs, anchors, _ = _retina_outputs(model, images, sizes)
    losses = model.compute_loss(targets, outputs, anchors)
    return {name: float(loss) for name, loss in losses.items()}


def _retina_outputs(model, images, sizes):
    features = list(model.backbone(images).values())
    anchors = model.anchor_generator(ImageList(images, sizes), features)
    num_anchors = [level.shape[2] * level.shape[3] * 9 for level in features]
    return model.head(features), anchors, num_anchors
