"""What recipes share: typed arguments and the groups that every config has."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.policies import recipes, start_numbers
from jaxssl.corruptions.apply import corruption_group
from jaxssl.errors import UserError
from jaxssl.training.optim import DECAY_ALL, EXCLUDE_BIAS_AND_NORM


def arguments(text: str | None, **defaults: Any) -> ConfigDict:
    """The arguments of ``file.py:key=value,...``, typed as their defaults are.

    Raises:
      UserError: if a key is unknown or given twice, or a value is not of its type.
    """
    result = ConfigDict(defaults)
    for key, value in _pairs(text):
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


def _pairs(text: str | None) -> list[tuple[str, str]]:
    """The (key, value) of each ``key=value``; raises UserError if a key is there twice."""
    given: dict[str, str] = {}
    for key, _, value in (pair.partition("=") for pair in filter(None, (text or "").split(","))):
        if key in given:
            raise UserError(
                f"config argument {key} is given twice, as {given[key]} and as {value}: leave one "
                "out."
            )
        given[key] = value
    return list(given.items())


def check_sourced(
    dataset: str, sourced: tuple[str, ...], where: str = "this recipe", instead: str = ""
) -> str:
    """The argument ``dataset``; raises UserError unless it is one of those that have a source."""
    if dataset not in sourced:
        raise UserError(
            f"config argument dataset={dataset!r} has no source in {where}, which is for "
            f"{', '.join(sourced)}: start from dataset={sourced[0]} with "
            f"--config.data.name={dataset}{instead}."
        )
    return dataset


# What every recipe with presets takes, besides ``preset`` and ``dataset``.
ARGUMENTS = {"batch": 512, "epochs": 200.0, "width": 64, "size": 32, "policy": "multi_view"}


class Preset(NamedTuple):
    """One protocol of a recipe; its name in the recipe's ``PRESETS`` says whose it is.

    Attributes:
      fill: writes what the protocol says into a config, from the recipe's arguments.
      datasets: those that its source gives numbers for; the first is the default.
      arguments: its defaults of the recipe's arguments, where they differ from `ARGUMENTS`.
      held_out: share of the train split held out for choices. 0, of a foreign protocol: all of it
        is trained on, and the run is watched on the test split.
    """

    fill: Callable[[ConfigDict, ConfigDict], None]
    datasets: tuple[str, ...]
    arguments: Mapping[str, Any]
    held_out: float = 0.0


def from_preset(text: str | None, presets: Mapping[str, Preset], **more: Any) -> ConfigDict:
    """The config of a recipe's preset: of the argument ``preset``, or its first.

    Args:
      text: the arguments, ``key=value,...``: ``preset``, ``dataset``, `ARGUMENTS` and ``more``.
      presets: by name.
      more: further arguments of the recipe, with defaults.

    Raises:
      UserError: for arguments that `arguments` refuses, an unknown preset, or a data set for which
        the preset has no source.
    """
    name = dict(_pairs(text)).get("preset", next(iter(presets)))
    if name not in presets:
        raise UserError(
            f"config argument preset={name!r} is unknown: this recipe has {', '.join(presets)}."
        )
    preset = presets[name]
    start = {"preset": name, "dataset": preset.datasets[0]}
    given = arguments(text, **(start | ARGUMENTS | more | dict(preset.arguments)))
    others = [key for key, other in presets.items() if given.dataset in other.datasets]
    instead = "".join(f", or preset={key}" for key in others)
    check_sourced(given.dataset, preset.datasets, f"preset={name}", instead)
    config = base_config()
    config.batch_size = given.batch
    config.epochs = given.epochs
    config.data.name = given.dataset
    config.data.validation_fraction = preset.held_out
    config.evals.knn.split = "validation" if preset.held_out else "test"
    config.encoder.width = given.width
    canonical(config, given.size)
    preset.fill(config, given)
    view_policy(config, given.policy)
    return config.lock()


def base_config() -> ConfigDict:
    """Every group but ``method``, with a ResNet-18 for 32-pixel images; recipes overwrite it."""
    config = ConfigDict()
    config.seed = 0  # sets init_seed and data_seed unless they are given
    config.init_seed = -1  # seed of the weights and of a step's own draws; -1: seed
    config.data_seed = -1  # seed of order and views; runs that share it are paired; -1: seed
    config.batch_size = 512  # images (not views) a step, over all devices
    config.epochs = 200.0  # passes over the training images: the horizon of every schedule
    config.data = data_group()
    config.views = ConfigDict()  # see view_group
    config.corruption = corruption_group()  # see there
    config.randbit = randbit_group()
    config.normalize = normalize_group()
    config.encoder = encoder_group()
    config.optimizer = sgd_group()
    config.hyper = hyper_group()
    config.evals = evals_group()  # what is run during training, by name
    config.online = online_group()
    config.run = run_group()
    return config


def hyper_group() -> ConfigDict:
    """Every number that a study may sweep: a float or a schedule, traced by the compiled step.

    A recipe adds what its method reads; `view_policy` what a spatial policy reads.
    """
    hyper = ConfigDict()
    hyper.learning_rate = schedule(0.06)  # before the scaling of optimizer.scaling
    hyper.weight_decay = 5e-4  # L2 coefficient of the decayed parameters
    return hyper


def schedule(
    value: float,
    *,
    end: float = 0.0,
    shape: str = "cosine",
    warmup_epochs: float = 0.0,
    warmup_from: float = 0.0,
    granularity: str = "step",
) -> ConfigDict:
    """A leaf of ``hyper`` that moves during training; see `jaxssl.training.schedules`."""
    leaf = ConfigDict()
    leaf.value = value  # after the warm-up: what a study sweeps
    leaf.warmup_epochs = warmup_epochs  # length of a linear warm-up, may be fractional; 0: none
    leaf.warmup_from = warmup_from  # at step 0 of the warm-up
    # From value to end: "cosine", "linear", "stepped"; or "constant", "switch": no end.
    leaf.shape = shape
    leaf.end = end  # at config.epochs
    leaf.granularity = granularity  # "step", "epoch", or "epoch_from_one" (MoCo's CIFAR demo)
    return leaf


def from_epoch(epoch: float) -> ConfigDict:
    """A leaf of ``hyper`` that is 0 before an epoch, which may be fractional, and then 1."""
    return schedule(1.0, shape="switch", warmup_epochs=epoch)


def data_group() -> ConfigDict:
    """Where the images come from."""
    data = ConfigDict()
    # A key of jaxssl.data.sources.KINDS or .composed.COMPOSED, a TFDS set, or package.module:Name.
    data.name = "cifar10"
    data.data_dir = ""  # root of a folder or of TFDS; "": TFDS_DATA_DIR or TFDS's default
    data.image_size = 32  # canonical height and width in pixels of sets that vary in size
    data.fit = "crop"  # to it: short side, then the centre; "letterbox": long side, top left, zeros
    data.background = (255, 255, 255)  # RGB of the ground under transparent pixels, 0..255
    data.scale = ()  # (low, high): values that become 0 and 255, of images of more than 8 bits
    data.jpeg_margin = 0.0  # JPEGs decoded at 1/2, 1/4, 1/8 keep so many pixels for one; 0: none
    data.validation_fraction = 0.1  # share of the train split held out for choices, 0..1
    data.test_fraction = 0.0  # share of the train split held out for tests if no test is published
    data.train_examples = 0  # training images used, evenly spread over the split; 0: all
    data.classes = ""  # "imagenet100": the classes of that list alone; "": all
    data.unreadable = "refuse"  # an image file that cannot be decoded, or "skip" and count it
    return data


def view_group(augmentations: tuple[Augmentation, ...]) -> ConfigDict:
    """The views of a preset or of one's own, every number open to a change.

    The largest views are ``global_crops``, the others ``local_crops``; each group has a ``count``
    and the numbers of `jaxssl.augment.augmentation.Augmentation`, with their units. Where the
    second global view differs (BYOL), ``global_crops.second`` holds what differs.

    Raises:
      ValueError: if the views are not of that form.
    """
    views = ConfigDict({"policy": "multi_view"})  # or a key of jaxssl.augment.policies.PAIRS
    largest = max(view.size for view in augmentations)
    groups = {
        "global_crops": [view for view in augmentations if view.size == largest],
        "local_crops": [view for view in augmentations if view.size < largest],
    }
    for name, members in groups.items():
        if not members:
            continue
        first = dataclasses.asdict(members[0])
        group = views[name] = ConfigDict(first)
        group.count = len(members)  # views of this kind
        for number, view in enumerate(members[1:], 2):
            other = dataclasses.asdict(view)
            differing = {key: other[key] for key in first if other[key] != first[key]}
            if differing and (name, number) != ("global_crops", 2):
                raise ValueError(f"View {number} of {name} differs in {', '.join(differing)}.")
            if differing:
                group.second = ConfigDict(differing)  # of the second global view alone
    if recipes(views) != augmentations:
        raise ValueError("Global views come first, then local ones.")
    return views


def view_policy(config: ConfigDict, policy: str) -> None:
    """Sets ``views.policy`` and adds to ``hyper`` the numbers that it reads.

    Raises:
      UserError: if there is no such policy.
    """
    config.views.policy = policy
    config.hyper.update(start_numbers(policy))


def canonical(config: ConfigDict, size: int) -> None:
    """The canonical images of a set that varies in size, for views of ``size`` pixels.

    Up to 64 pixels the central part at the views' size, as CIFAR's images are. For larger views the
    whole picture, letterboxed with a long side of twice the views': crops are drawn from all of it,
    and one of area .08 of a 4:3 picture has half the views' pixels on a side, as torchvision's has
    of an original of 500 pixels. Such a set is decoded anew in each epoch, so that photographs of
    more than four times that are decoded at a fraction of their size.
    """
    config.data.image_size = size if size <= 64 else 2 * size
    config.data.fit = "crop" if size <= 64 else "letterbox"
    config.data.jpeg_margin = 0.0 if size <= 64 else 2.0


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
    encoder.width = 64  # channels of the first stage; the published net's; SimCLR's "2x": 128
    encoder.stem = "cifar"  # "cifar": 3x3 stride 1; "imagenet": 7x7 stride 2 and max-pool
    encoder.stem_padding = "same"  # "same" or pixels
    encoder.shortcut = "projection_on_change"  # or "projection_always" (SimCLR's code)
    encoder.zero_init_residual = False  # last BatchNorm scale of a block starts at 0
    encoder.bn_momentum = 0.9  # share of the old running statistics kept a step
    encoder.bn_epsilon = 1e-5  # added to the variance
    encoder.bn_groups = 1  # contiguous groups of the images with statistics of their own
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
    encoder.bn_groups = 1  # contiguous groups of the images with statistics of their own
    encoder.kernel_init = "fan_in_truncated_normal"  # or "fan_out_normal"
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    return encoder


def small_alexnet_group(size: int) -> ConfigDict:
    """The net of arXiv:2005.10242 up to fc7, for views of ``size`` pixels; fc8 is the head's."""
    encoder = ConfigDict()
    encoder.name = "small_alexnet"
    encoder.image_size = size  # side of the views, pixels; the paper's have 64
    encoder.width = 96  # channels of the first convolution
    encoder.dense_dim = 4096  # size of fc6 and of fc7, which is what probes read
    encoder.bn_momentum = 0.9  # share of the old running statistics kept a step
    encoder.bn_epsilon = 1e-5  # added to the variance
    encoder.bn_groups = 1  # contiguous groups of the images with statistics of their own
    encoder.kernel_init = "normal_0.02"  # see jaxssl.models.layers.KERNEL_INITS
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    return encoder


def mlp_group(width: int) -> ConfigDict:
    """Two dense layers for images of one pixel (saturation, arXiv:2011.02803 B.2)."""
    encoder = ConfigDict()
    encoder.name = "mlp"
    encoder.width = width  # size of every layer
    encoder.depth = 2  # layers
    encoder.bn_momentum = 0.9  # share of the old running statistics kept a step
    encoder.bn_epsilon = 1e-5  # added to the variance
    encoder.bn_groups = 1  # contiguous groups of the images with statistics of their own
    encoder.kernel_init = "fan_in_truncated_normal"  # see jaxssl.models.layers.KERNEL_INITS
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    return encoder


# Width, blocks and heads; "nano" is ours, for CPUs.
VIT_SIZES = {
    "nano": (64, 4, 4),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}


def vit_group(variant: str, size: int, patch: int) -> ConfigDict:
    """A ViT of `VIT_SIZES` for views of ``size`` pixels; see `jaxssl.models.ViT`.

    timm's. MoCo-v3's has ``positions="sincos"``, ``frozen_patches=True``, ``xavier_uniform``, and
    12 heads in its small; MAE's ``positions="sincos"``, ``xavier_uniform``.
    """
    encoder = ConfigDict()
    encoder.name = "vit"
    encoder.image_size = size  # side of the images that the positions are for, pixels
    encoder.patch = patch  # side of a patch, pixels; a divisor of the views' sizes
    encoder.width, encoder.depth, encoder.heads = VIT_SIZES[variant]  # of a token; blocks; heads
    encoder.mlp_ratio = 4.0  # size of a block's hidden layer over the width
    encoder.positions = "learned"  # or "sincos": fixed
    encoder.pool = "class"  # the class token's output; "mean": of the patches, no class token
    quarters = sorted({-(-encoder.depth * k // 4) for k in range(1, 5)})
    encoder.stages = tuple(quarters)  # blocks, from 1, whose maps have names; the last is depth
    encoder.frozen_patches = False  # keep the embedding of patches as it was drawn (MoCo-v3)
    encoder.kernel_init = "normal_0.02"  # timm, DINO; or "xavier_uniform" (MoCo-v3, MAE)
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    return encoder


def simclr_group(out_dim: int) -> ConfigDict:
    """SimCLR with a head of two layers, BatchNorm between them."""
    method = ConfigDict()
    method.name = "simclr"
    method.head = head_group(out_dim)
    return method


def head_group(out_dim: int, **settings: Any) -> ConfigDict:
    """A head of two layers, BatchNorm between them; see `jaxssl.models.heads.ProjectionHead`.

    Args:
      out_dim: size of the output.
      settings: leaves that differ.
    """
    head = ConfigDict()
    head.num_layers = 2
    head.hidden_dim = 0  # 0: as wide as its input
    head.out_dim = out_dim
    head.hidden_norm = True  # BatchNorm between a hidden layer and its ReLU
    head.hidden_bias = False
    head.output_norm = "none"  # or "bn", "bn_no_center", "bn_no_affine"
    head.output_bias = False
    head.init = "fan_in_uniform"  # see jaxssl.models.heads.DENSE_INITS
    head.bn_momentum = 0.9  # share of the old running statistics kept a step
    head.bn_epsilon = 1e-5  # added to the variance
    head.bn_groups = 1  # contiguous groups of the images with statistics of their own
    head.lock().update(settings)  # locked: a name that is none of its leaves is refused
    return head.unlock()


def sgd_group() -> ConfigDict:
    """SGD with momentum in PyTorch's order, decay on every parameter."""
    optimizer = ConfigDict()
    optimizer.name = "sgd"  # see jaxssl.training.optim.OPTIMIZERS
    optimizer.scaling = "none"  # of the learning rate: "none", "linear" (B/256), "sqrt" (sqrt B)
    optimizer.groups = (
        DECAY_ALL  # (path pattern, decay factor, trust ratio, rate factor, scheduled); first wins
    )
    optimizer.clip_norm = 0.0  # largest norm of the whole gradient; 0: no limit
    optimizer.momentum = 0.9  # share of the old velocity kept a step
    optimizer.nesterov = False  # look ahead
    return optimizer


def lars_group() -> ConfigDict:
    """LARS as in SimCLR's code: no decay and no trust ratio for biases and BatchNorm."""
    optimizer = ConfigDict()
    optimizer.name = "lars"
    optimizer.scaling = "linear"  # as in sgd_group
    optimizer.groups = EXCLUDE_BIAS_AND_NORM  # as in sgd_group
    optimizer.clip_norm = 0.0  # as in sgd_group
    optimizer.momentum = 0.9  # share of the old velocity kept a step
    optimizer.trust_coefficient = 0.001  # eta
    optimizer.trust_formula = "norm_of_sum"  # see jaxssl.training.optim.TRUST_FORMULAS
    optimizer.lr_in_momentum = True  # TensorFlow's order; False: PyTorch's
    optimizer.clip_trust = False  # ratio / lr at most 1
    return optimizer


def adamw_group() -> ConfigDict:
    """AdamW in PyTorch's form, with its defaults; no decay for biases, norms, positions."""
    optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.scaling = "none"  # as in sgd_group
    optimizer.groups = EXCLUDE_BIAS_AND_NORM  # as in sgd_group
    optimizer.clip_norm = 0.0  # as in sgd_group
    optimizer.b1 = 0.9  # share of the old mean gradient kept a step
    optimizer.b2 = 0.999  # share of the old mean squared gradient kept a step
    optimizer.eps = 1e-8  # added to the root of the latter
    return optimizer


def evals_group() -> ConfigDict:
    """Every section once, under its own name; but for kNN none is run until ``every`` says so."""
    return ConfigDict({"knn": knn_group(), **{name: section_group(name) for name in SECTIONS}})


SECTIONS = (
    "linear",
    "few_shot",
    "geometry",
    "alignment",
    "dense",
    "calibration",
    "fingerprint",
    "online",
)


def section_group(section: str) -> ConfigDict:
    """A section of the evaluation card during training, see `jaxssl.evaluation.evals`."""
    group = ConfigDict()
    group.section = section  # "knn" or one of SECTIONS
    group.every = 0.0  # epochs, may be fractional; also at the end; 0: never
    group.split = "validation"  # whose images are looked at: "validation" or "test"
    group.layer = "pooled"  # as in knn_group; online: that of the online group
    return group


def online_group() -> ConfigDict:
    """A linear classifier trained beside the method, which it leaves as it is to the last bit."""
    online = ConfigDict()
    online.learning_rate = 0.0  # peak for 256 images a step, with cosine decay; 0: no classifier
    online.momentum = 0.9  # Nesterov's
    online.layer = "pooled"  # of the method, whose vectors it classifies
    return online


def knn_group() -> ConfigDict:
    """Nearest neighbours among the training images; uses labels, so never choose by "test"."""
    knn = ConfigDict()
    knn.section = "knn"
    knn.every = 10.0  # epochs, may be fractional; also at the end; 0: never
    knn.split = "validation"  # "validation" or "test"
    knn.protocol = "moco"  # "moco" (k=200, T=.1), "dino" (20, .07), "simsiam" (200, .2)
    knn.layer = "pooled"  # a layer of the method: "projection", "teacher", "stage4" ...
    return knn


def run_group() -> ConfigDict:
    """Cadence, placement and where to stop: all that a resumed run may change."""
    run = ConfigDict()
    run.stop_step = 0  # stop after this many steps, the schedule unchanged; 0: at the horizon
    run.log_every_steps = 20
    run.checkpoint_every_steps = 1000
    run.save_every_minutes = 10.0  # a checkpoint also after so long without one; 0: never
    run.keep_last = 2  # newest checkpoints kept
    run.keep_every_steps = 0  # checkpoints at these multiples are kept for good; 0: none
    run.num_devices = 0  # devices of the mesh; 0: all
    run.prefetch = 4  # batches read ahead
    run.workers = 0  # processes that decode images; 0: threads
    run.distributed = False  # join the processes of a multi-host job first
    run.wandb = False  # log to Weights & Biases too, if it is installed
    return run
