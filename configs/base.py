"""Every field of a run and what it means. Other configs start from this one and change values.

Networks and schedules are the paper's: ResNet-50 with Faster R-CNN and FPN, COCO images at
800 x 1333. How supernets share and draw, and what is done before a network is returned, is what
this project found better; `configs/paper.py` sets the paper's own way.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the settings for COCO; `data` names where your images are."""
    config = ConfigDict()
    config.seed = 0  # seed of everything drawn: weights, paths, samples, order
    config.devices = 0  # number of devices; 0 for all
    # Devices that the state of a training is split over, a divisor of their number; 1: each has it
    # whole. For supernets that do not fit otherwise (docs/pods.md).
    config.fsdp = 1
    config.precision = "float32"  # activations: "float32" or "bfloat16"; parameters are float32
    config.remat = False  # recompute backbone blocks in the backward pass: less memory, more time
    # Name in the zoo, or a .json with an architecture; its cost in blocks is the budget.
    config.baseline = "resnet50"
    config.budget = 0.0  # total cost in blocks; 0 for the baseline's
    config.widths = ()  # per stage, for the networks that are trained in the end; () for the zoo's
    # What train_detector and evaluate mean: "baseline", "stage_only", "searched" or "returned".
    config.network = "returned"
    # Batch statistics of networks that are trained alone: "running" averages; "recalibrate" them on
    # training images; "auto": that where fewer than 16 images are normalised together.
    config.trained_bn = "auto"
    config.trained_bn_images = 512

    config.data = ConfigDict()
    # "coco" (folder with images and json), "voc" (VOCdevkit), "tfds" (records), "synthetic" (no
    # files) or "none" (for classification alone).
    config.data.name = "coco"
    config.data.folder = "data/coco"  # holds the following; "tfds": that of one version
    config.data.images = "images"  # folder of the images ("coco")
    config.data.train_images = ""  # folder of one split's images; "" for `images`
    config.data.val_images = ""
    config.data.test_images = ""
    # Json files ("coco"), lists such as "VOC2007/trainval+VOC2012/trainval" ("voc"), or splits such
    # as "train[:90%]" ("tfds").
    config.data.train = "train.json"  # for weights
    config.data.val = "val.json"  # for the searches; "" where nothing is searched
    config.data.test = "test.json"  # once, at the end
    config.data.class_names = ()  # class names ("voc"); () for VOC's 20
    config.data.strict = False  # refuse boxes without size or out of their image; else left out
    # Boxes on photographs with an EXIF rotation: "auto" (their sizes tell), "stored" or "shown".
    config.data.exif = "auto"
    config.data.max_pixels = 100_000_000  # pixels of the largest image
    config.data.synthetic = ConfigDict({"size": 128, "train": 512, "val": 64, "test": 128})
    config.data.min_size = 800  # shorter side after resizing, pixels
    config.data.max_size = 1333  # bound of the longer side, pixels
    config.data.max_objects = 100  # boxes per image that a batch has room for
    config.data.mask_size = 112  # cells per side of the masks that a batch holds
    config.data.flip = True  # mirror half of the training images
    # Range of a random factor of the size of training images, such as (0.5, 2.0); larger ones are
    # cropped at a random place, smaller ones padded. () for none. Equal min_size and max_size make
    # the canvas a square.
    config.data.scale_jitter = ()
    config.data.workers = 0  # threads that read images; 0 for one on each core
    config.data.read_ahead = 0  # batches read before they are needed; 0 for two by each worker

    config.detector = ConfigDict()
    # "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn" or "retinanet".
    config.detector.kind = "faster_rcnn"
    # "fpn", "nas_fpn", or "none" on a backbone that puts out a pyramid; "auto": "none" there, "fpn"
    # on any other.
    config.detector.neck = "auto"
    config.detector.stacks = 7  # pyramids on top of each other in NAS-FPN
    config.detector.lowest_level = 3  # finest of NAS-FPN's five levels: 3 for p3..p7, 2 for p2..p6
    config.detector.mask_channels = 256  # channels of the mask head
    # What of the backbone is not trained: 0 nothing, 1 the stem, 2 up to c2, .. 5 all of it.
    config.detector.freeze_at = 0
    config.detector.freeze_norm = False  # do not train the backbone's batch normalisation
    config.detector.pyramid_channels = 256
    config.detector.head_channels = 1024
    config.detector.anchor_sizes = (32.0, 64.0, 128.0, 256.0, 512.0)  # pixels, by level
    config.detector.canonical_size = 224.0  # an RoI of this side is read from p4, pixels
    config.detector.roi_aligned = False  # Detectron2's half-cell shift
    config.detector.rpn_samples = 256  # anchors per image in the loss
    config.detector.pre_nms = (2000, 1000)  # proposals per level, training and test
    config.detector.post_nms = (2000, 1000)  # proposals per image, training and test
    config.detector.roi_samples = 512  # RoIs per image in the loss
    config.detector.nms_candidates = 1000  # entering suppression at once: speed and memory alone
    # RetinaNet's head, with its anchors, matching and losses: "torchvision", "torchvision_v2"
    # (group normalisation, GIoU) or "spinenet".
    config.detector.head = "torchvision"
    config.detector.head_convolutions = 0  # in each of its towers; 0: as published, mostly 4
    config.detector.p6_from = "p5"  # what RetinaNet's FPN computes p6 from, or "c5"
    config.detector.label_smoothing = 0.0  # share by which targets of the classification move
    config.detector.update(_layers())

    config.supernet = ConfigDict()
    # Widths of the supernet; () for the paper's: half of the network's, for MobileNetV2 all. Equal
    # to `widths`: a full-width supernet, which can start from a standard network's weights.
    config.supernet.widths = ()
    config.supernet.grids = ()  # candidate depths per searched stage; () for the paper's
    # "reachable": the depths of the grids that an allocation of a budget has; "all" (the paper's).
    config.supernet.depths = "reachable"
    config.supernet.dilations = (1, 2, 3)  # candidate dilations per block
    # What has a dilation of its own: each "block" (the paper's), or each "stage": few images cannot
    # tell more codes apart. A scale-permuted baseline has "block" or "level"; with "stage" its
    # dilations are not searched.
    config.supernet.tie = "stage"
    # "branch": each depth owns its blocks (the paper's); "prefix": a branch is the first blocks of
    # the deepest, which ranks far better after short trainings (docs/results.md).
    config.supernet.stage_sharing = "prefix"
    # "own": each dilation owns its kernel; "shared": one for all.
    config.supernet.kernel_sharing = "own"
    # Paths of training steps: "balanced" (each depth, and each dilation, equally often) or
    # "uniform" (the paper's).
    config.supernet.draws = "balanced"

    # One recipe each; `detector_train` trains every network that is trained alone.
    config.stage_train = _recipe(epochs=25.0, lr_drops=(16 / 25, 22 / 25))
    config.operation_train = _recipe(epochs=25.0, lr_drops=(16 / 25, 22 / 25))
    config.detector_train = _recipe(epochs=13.0, lr_drops=(8 / 13, 11 / 13))

    # Weights to start from: folders with `variables/`; "" for fresh ones. "stage_supernet" stands
    # for this run's. What `searched` names starts all networks but the baseline.
    config.init_from = ConfigDict(
        {
            "stage_supernet": "",
            "operation_supernet": "stage_supernet",
            "baseline": "",
            "searched": "",
        }
    )
    # Classification before detection, for the networks named; the paper's recipe on ImageNet.
    config.pretrain = _recipe(epochs=150.0, lr_drops=())
    config.pretrain.networks = ()  # some of the names in `init_from`
    config.pretrain.batch_size = 1024
    config.pretrain.lr_per_image = 0.4 / 1024
    config.pretrain.schedule = "cosine"
    config.pretrain.warmup_steps = 6000
    config.pretrain.label_smoothing = 0.0
    config.pretrain.update(_layers())
    config.pretrain.data = ConfigDict()
    # "folder" (one subfolder per class), "tfds" (records, with splits below) or "synthetic".
    config.pretrain.data.name = "folder"
    config.pretrain.data.folder = "data/imagenet"  # holds the following
    config.pretrain.data.train = "train"
    config.pretrain.data.val = "val"  # for top-1 and top-5
    config.pretrain.data.size = 224  # side of the crops, pixels
    config.pretrain.data.synthetic = ConfigDict({"size": 64, "train": 1024, "val": 128})

    config.search = ConfigDict()
    config.search.batch_size = 16  # images in a mini-batch
    config.search.beam = 3  # K of algorithm 1: partial codes that stay after each block
    config.search.batches = 0  # first mini-batches of val to score on (c); 0 for all
    # Batch statistics of subnets in the stage search: "recalibrate", "batch" or "running".
    config.search.bn = "recalibrate"
    config.search.calibration_images = 512  # training images for "recalibrate"
    config.search.max_subnets_per_call = 0  # subnets in a compiled call; 0 for what fits the memory
    # "exhaustive" (the paper's), "racing" (fewer images for surely worse ones), "random" or
    # "evolution".
    config.search.stage_strategy = "exhaustive"
    config.search.operation_strategy = "greedy"  # the paper's; or "random", "evolution"
    config.search.evaluations = 100  # subnets that "random" and "evolution" score
    config.search.population = 20  # subnets in a generation of "evolution"
    config.search.parents = 5  # subnets that the next generation is bred from
    config.search.confidence = 0.95  # how sure "racing" is not to drop the best early
    config.search.samples = 200  # resamplings of the images behind a score's interval
    config.search.budgets = ()  # further budgets of the stage search, in blocks: a Pareto set
    # Limits on the networks that are trained in the end; 0 for none. They apply to the whole
    # detector on one image of the landscape canvas; latency is measured on this device.
    config.search.max_flops = 0.0  # multiply-adds
    config.search.max_params = 0.0
    config.search.max_latency = 0.0  # milliseconds
    config.search.all_zero = "stop"  # when every candidate scores 0; or "continue" with the first
    # Score the operation search's last codes, and the code of ones, again as `bn` says.
    config.search.rescore = True

    # How scale-permuted networks are proposed: "evolution", "random", "reinforce" (the paper's) or
    # "halving"; `evaluations` counts proposals, `population` is evolution's, and `parents` are the
    # candidates that it chooses one from.
    config.search.architecture_strategy = "evolution"
    config.search.in_flight = 1  # proposals at once, each drawn before the results of the others

    # Scale-permuted networks (SpineNet): what is changed about the baseline's blocks.
    config.space = ConfigDict()
    # Parts that are searched together, one group after another: "permutations", "connections" and
    # "adjustments" (levels and kinds).
    config.space.phases = (("permutations", "connections", "adjustments"),)
    config.space.window = 5  # blocks that an intermediate block may read
    config.space.offsets = (-1, 0, 1, 2)  # candidates for what is added to a block's level
    config.space.levels = (2, 7)  # lowest and highest level of intermediate blocks
    # Parents while the order alone is searched: "nearest" two blocks, or "drawn" once.
    config.space.fixed_parents = "nearest"
    # Multiply-adds of the detector at the proxy's size over the baseline's; 0 for no limit.
    config.space.max_flops_ratio = 1.05
    config.space.min_flops_ratio = 0.0

    # The proxy task that each candidate is trained on: a recipe, and a small form of the network.
    config.proxy = _recipe(epochs=5.0, lr_drops=(4 / 5,))
    config.proxy.width_scale = 0.25
    config.proxy.alpha = 0.25  # channels of the resampling over a parent's width
    config.proxy.endpoint_channels = 64  # channels of outputs and head
    config.proxy.repeats = 1
    config.proxy.min_size = 512  # shorter side after resizing, pixels
    config.proxy.max_size = 512  # bound of the longer side, pixels
    config.proxy.seeds = 1  # trainings of each candidate, whose scores are averaged
    config.proxy.kept_candidates = 20  # best candidates whose checkpoints and detections stay
    # Gigabytes that a training step may take, judged before it runs; 0 for no limit.
    config.proxy.max_memory = 0.0

    # REINFORCE's controller.
    config.controller = ConfigDict()
    config.controller.units = 100  # units of the LSTM
    config.controller.embedding = 32  # length of a decision's embedding
    config.controller.rate = 1e-3  # learning rate of Adam
    config.controller.entropy = 1e-3  # weight of the decisions' entropy
    config.controller.decay = 0.95  # of the moving averages of rewards
    config.controller.batch = 8  # scored candidates of an update

    # Where candidates and finalists are trained: in "local" processes of their own, or by "ray" on
    # many machines (docs/pods.md); "auto": candidates locally, finalists of CR-NAS one by one.
    config.executor = ConfigDict()
    config.executor.kind = "auto"
    config.executor.address = ""  # Ray's cluster, host:port or "auto"; "" to start one here
    config.executor.platform = "auto"  # "cpu", "gpu" or "tpu"; "auto": what is there
    config.executor.workers = 0  # candidates at once on this machine; 0 for what fits
    config.executor.candidate_devices = 1  # accelerators of a candidate
    config.executor.candidate_threads = 1  # cores of a candidate on a CPU
    config.executor.candidate_memory = 0.0  # gigabytes of a machine that Ray reserves for one
    config.executor.per_device = 1  # candidates on one accelerator

    # What is trained alone before a network is returned, and when it is (docs/searching.md).
    config.refine = ConfigDict()
    # Best allocations, beside the baseline's, that are trained with a short schedule; 0 for the
    # paper's procedure: the found network is returned unexamined.
    config.refine.finalists = 4
    config.refine.operation_finalists = 2  # best codes of dilations, beside that of ones
    config.refine.short = 1 / 3  # epochs of a finalist over those of `detector_train`
    config.refine.seeds = 2  # trainings of the found network, its stage-only form, the baseline
    # Least probability, between 0 and 1, of being better than the baseline.
    config.refine.confidence = 0.8
    config.profile = 0  # steps of each training to trace, for TensorBoard's profiler; 0 for none
    config.erf_images = 8  # images behind the receptive fields in the report; 0 for none
    config.bootstrap = 500  # resamplings of the images behind the interval of the difference
    return config.lock()


def _layers():
    return ConfigDict(
        {
            "activation": "",  # "relu", "relu6" or "swish"; "" for the backbone family's own
            "bn_momentum": 0.9,  # share of the stored statistics that stays in a step
            "bn_epsilon": 1e-5,
            # Share of images that lose the residual branch of the last permuted block.
            "stochastic_depth": 0.0,
            "drop_block": 0.0,  # share of cells dropped at levels 4 and 5 at the end
            "drop_block_size": 7,  # side of a dropped block, cells
        }
    )


def _recipe(epochs, lr_drops):
    return ConfigDict(
        {
            "epochs": epochs,
            "batch_size": 16,  # images in a global batch
            "accumulate": 1,  # parts that a batch is cut into, one after the other: less memory
            "lr_per_image": 0.00125,  # learning rate over batch size
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "decay_kernels_only": False,  # no weight decay of biases and normalisation
            # Share of a moving average of the weights that stays in a step, such as 0.9998; what is
            # saved, recalibrated and evaluated is the average. 0 for none.
            "ema_decay": 0.0,
            "clip_norm": 0.0,  # largest norm of the gradient; 0 for no limit
            "schedule": "step",  # "step" (a tenth after each of lr_drops) or "cosine"
            "lr_drops": lr_drops,  # fractions of the run
            "warmup_steps": 500,  # at most a quarter of the run
            "warmup_start": 1e-3,  # share of the rate that they begin with
            "checkpoint_seconds": 120.0,  # least time between checkpoints
            "log_every": 10,  # steps between log entries
        }
    )
