"""What recipes share: typed arguments and the groups that every config has."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxssl.augment.augmentation import Augmentation
from jaxssl.corruptions.apply import corruption_group
from jaxssl.errors import UserError
from jaxssl.training.optim import DECAY_ALL, EXCLUDE_BIAS_AND_NORM


def arguments(text: str | None, **defaults: Any) -> ConfigDict:
    """The arguments of ``file.py:key=value,...``, typed as their defaults are.

    Raises:
      UserError: if a key is unknown or a value is not of its type.
    """
    result = ConfigDict(defaults)
    for pair in filter(None, (text or "").split(",")):
        key, _, value = pair.partition("=")
        if key not in defaults:
            raise UserError(
                f"config argument {key!r} is unknown: this recipe takes {', '.join(defaults)}."
            )
        kind = type(defaults[key])
        try:
            result[key] = {"true": True, "false": False}[value] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise UserError(
                f"config argument {key}={value!r} is not {kind.__name__}: "
                f"give one such as {key}={str(defaults[key]).lower()}."
            ) from None
    return result


def integers(key: str, text: str) -> tuple[int, ...]:
    """The whole numbers of an argument that joins them by +.

    Raises:
      UserError: if one is none.
    """
    try:
        return tuple(int(part) for part in text.split("+"))
    except ValueError:
        raise UserError(
            f"config argument {key}={text!r} is no list of whole numbers: join them by +, "
            f"such as {key}=20+28."
        ) from None


def base_config() -> ConfigDict:
    """Every group but ``method``, with a ResNet-18 for 32-pixel images; recipes overwrite it."""
    config = ConfigDict()
    config.seed = 0  # sets init_seed and data_seed unless they are given
    config.init_seed = -1  # seed of the weights and of a step's own draws; -1: seed
    config.data_seed = -1  # seed of order and views; runs that share it are paired; -1: seed
    config.batch_size = 512  # images (not views) a step, over all devices
    config.data = data_group()
    config.views = ConfigDict()  # one group a view, see view_group
    config.corruption = corruption_group()  # see there
    config.randbit = randbit_group()
    config.normalize = normalize_group()
    config.encoder = encoder_group()
    config.optimizer = sgd_group()
    config.schedule = schedule_group()
    config.hyper = hyper_group()
    config.monitor = monitor_group()
    config.run = run_group()
    return config


def hyper_group() -> ConfigDict:
    """Every number that a study may sweep: a float that enters the compiled step traced.

    A recipe adds what its method reads. The spatial policies' numbers (`jaxssl.augment.policies`)
    are read by those policies alone; areas and sides are shares of the image's.
    """
    hyper = ConfigDict()
    hyper.learning_rate = 0.06  # peak, before the scaling of optimizer.scaling
    hyper.weight_decay = 5e-4  # L2 coefficient of the decayed parameters
    hyper.overlap = 0.3  # overlap, overlap_fixed_area: area that both crops share
    hyper.crop_area = 0.5  # overlap_fixed_area: area of each crop
    hyper.patch_area = 0.3  # patch, cutout, cutout_blur: area of the square
    hyper.gap = 0.1  # exclusive: area of the band between the crops
    hyper.min_side = 0.2  # exclusive, non_overlapping: smallest side of a crop
    hyper.blur_sigma = 3.0  # cutout_blur: standard deviation, pixels of the canonical image
    return hyper


def data_group() -> ConfigDict:
    """Where the images come from."""
    data = ConfigDict()
    data.name = "cifar10"  # a key of jaxssl.data.sources.KINDS or .composed.COMPOSED, or a TFDS set
    data.data_dir = ""  # root of a folder or of TFDS; "": TFDS_DATA_DIR or TFDS's default
    data.image_size = 32  # canonical height and width in pixels of sets that vary in size
    data.fit = "crop"  # to it: short side, then the centre; "letterbox": long side, top left, zeros
    data.background = (255, 255, 255)  # RGB of the ground under transparent pixels, 0..255
    data.scale = ()  # (low, high): values that become 0 and 255, of images of more than 8 bits
    data.validation_fraction = 0.1  # share of the train split held out for choices, 0..1
    data.test_fraction = 0.0  # share of the train split held out for tests if no test is published
    data.train_examples = 0  # training images used, evenly spread over the split; 0: all
    data.classes = ""  # "imagenet100": the classes of that list alone; "": all
    data.unreadable = "refuse"  # an image file that cannot be decoded, or "skip" and count it
    return data


def view_group(augmentations: tuple[Augmentation, ...]) -> ConfigDict:
    """Groups view1, view2 ... of a preset or of one's own, every number open to a change.

    The leaves and their units are those of `jaxssl.augment.augmentation.Augmentation`.
    """
    views = ConfigDict({"policy": "multi_view"})  # or a key of jaxssl.augment.policies.PAIRS
    for number, augmentation in enumerate(augmentations, 1):
        views[f"view{number}"] = ConfigDict(dataclasses.asdict(augmentation))
    return views


def randbit_group() -> ConfigDict:
    """Channels that hold an integer of the image's own, appended last of all."""
    randbit = ConfigDict()
    randbit.num_bits = 0  # channels, one a bit; 0: none
    randbit.seed = 0  # of the integers
    randbit.fresh_per_epoch = False  # another integer in each epoch
    return randbit


def normalize_group() -> ConfigDict:
    """Constants that are subtracted and divided by after all augmentation."""
    normalize = ConfigDict()
    normalize.mean = ()  # one a channel, of images in [0,1]; (): none
    normalize.std = ()  # likewise
    return normalize


def encoder_group() -> ConfigDict:
    """A CIFAR ResNet-18; every leaf is an argument of `jaxssl.models.ResNet`."""
    encoder = ConfigDict()
    encoder.name = "resnet18"  # see jaxssl.models.ENCODERS
    encoder.width = 64  # channels of the first stage; 64 is the published net
    encoder.stem = "cifar"  # "cifar": 3x3 stride 1; "imagenet": 7x7 stride 2 and max-pool
    encoder.stem_padding = "same"  # "same" or pixels
    encoder.shortcut = "projection_on_change"  # or "projection_always" (SimCLR's code)
    encoder.zero_init_residual = False  # last BatchNorm scale of a block starts at 0
    encoder.bn_momentum = 0.9  # share of the old running statistics kept a step
    encoder.bn_epsilon = 1e-5  # added to the variance
    encoder.bn_groups = 1  # contiguous groups of the batch with statistics of their own
    encoder.kernel_init = "fan_out_normal"  # or "fan_in_truncated_normal" (SimCLR's code)
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    return encoder


def convn_group(size: int, width: int) -> ConfigDict:
    """The small net of the MNIST experiments of arXiv:2011.02803, for views of ``size`` pixels."""
    encoder = ConfigDict()
    encoder.name = "convn"
    encoder.image_size = size  # side of the views, pixels
    encoder.width = width  # channels of the first convolution; the paper's code has 32
    encoder.padding = "same"  # or "valid", the paper's, for 28 pixels
    encoder.bn_momentum = 0.9  # share of the old running statistics kept a step
    encoder.bn_epsilon = 1e-5  # added to the variance
    encoder.bn_groups = 1  # contiguous groups of the batch with statistics of their own
    encoder.kernel_init = "fan_in_truncated_normal"  # or "fan_out_normal"
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    return encoder


def simclr_group(out_dim: int) -> ConfigDict:
    """SimCLR with a head of two layers, BatchNorm between them."""
    method = ConfigDict()
    method.name = "simclr"
    head = method.head = ConfigDict()
    head.num_layers = 2
    head.hidden_dim = 0  # 0: as wide as its input
    head.out_dim = out_dim
    head.hidden_norm = True  # BatchNorm between a hidden layer and its ReLU
    head.hidden_bias = False
    head.output_norm = "none"  # or "bn", "bn_no_center", "bn_no_affine"
    head.output_bias = False
    head.init = "fan_in_uniform"  # see jaxssl.models.heads.DENSE_INITS
    return method


def sgd_group() -> ConfigDict:
    """SGD with momentum in PyTorch's order, decay on every parameter."""
    optimizer = ConfigDict()
    optimizer.name = "sgd"  # see jaxssl.training.optim.OPTIMIZERS
    optimizer.scaling = "none"  # of the learning rate: "none", "linear" (B/256), "sqrt" (sqrt B)
    optimizer.groups = (
        DECAY_ALL  # (path pattern, decay factor, trust ratio, rate factor); first wins
    )
    optimizer.momentum = 0.9  # share of the old velocity kept a step
    optimizer.nesterov = False  # look ahead
    return optimizer


def lars_group() -> ConfigDict:
    """LARS as in SimCLR's code: no decay and no trust ratio for biases and BatchNorm."""
    optimizer = ConfigDict()
    optimizer.name = "lars"
    optimizer.scaling = "linear"  # as in sgd_group
    optimizer.groups = EXCLUDE_BIAS_AND_NORM  # as in sgd_group
    optimizer.momentum = 0.9  # share of the old velocity kept a step
    optimizer.trust_coefficient = 0.001  # eta
    optimizer.trust_formula = "norm_of_sum"  # see jaxssl.training.optim.TRUST_FORMULAS
    optimizer.lr_in_momentum = True  # TensorFlow's order; False: PyTorch's
    optimizer.clip_trust = False  # ratio / lr at most 1
    return optimizer


def adamw_group() -> ConfigDict:
    """AdamW in PyTorch's form, with its defaults; no decay for biases and BatchNorm."""
    optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.scaling = "none"  # as in sgd_group
    optimizer.groups = EXCLUDE_BIAS_AND_NORM  # as in sgd_group
    optimizer.b1 = 0.9  # share of the old mean gradient kept a step
    optimizer.b2 = 0.999  # share of the old mean squared gradient kept a step
    optimizer.eps = 1e-8  # added to the root of the latter
    return optimizer


def schedule_group() -> ConfigDict:
    """Cosine without warm-up."""
    schedule = ConfigDict()
    schedule.epochs = 200.0  # horizon, passes over the training images
    schedule.warmup_epochs = 0.0  # from 0, linear
    schedule.decay = "cosine"  # or "linear", "constant"
    schedule.final = 0.0  # share of the peak at the horizon
    schedule.granularity = "step"  # or "epoch", "epoch_from_one" (MoCo's CIFAR demo)
    return schedule


def monitor_group() -> ConfigDict:
    """What is watched while training; labels are used, so never choose by the test split."""
    monitor = ConfigDict()
    monitor.knn_every_epochs = 10.0  # kNN accuracy of "split" against the training images; 0: never
    monitor.split = "validation"  # "validation" or "test"
    monitor.protocol = "moco"  # "moco" (k=200, T=.1), "dino" (20, .07), "simsiam" (200, .2)
    monitor.layer = "pooled"  # "pooled" or a layer of the method's own, such as "projection"
    return monitor


def run_group() -> ConfigDict:
    """Cadence, placement and where to stop: all that a resumed run may change."""
    run = ConfigDict()
    run.stop_step = 0  # stop after this many steps, the schedule unchanged; 0: at the horizon
    run.log_every_steps = 20
    run.checkpoint_every_steps = 1000
    run.keep_last = 2  # newest checkpoints kept
    run.keep_every_steps = 0  # checkpoints at these multiples are kept for good; 0: none
    run.num_devices = 0  # devices of the mesh; 0: all
    run.prefetch = 4  # batches read ahead
    run.workers = 0  # processes that decode images; 0: threads
    run.distributed = False  # join the processes of a multi-host job first
    run.wandb = False  # log to Weights & Biases too, if it is installed
    return run
