"""From a config to views: the policy, then a late corruption, normalisation, appended bits.

A spatial policy (Jha and Tuytelaars, 2024) places the crops of two views together; all else that is
drawn for a view stays what `multi_view` draws for it, so that runs which differ in the policy are
paired.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jaxssl.augment import bits, spatial
from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.views import (
    Draw,
    Views,
    augment_view,
    evaluation_boxes,
    evaluation_view,
    gather_views,
    multi_view,
    normalize,
    to_float,
    view_keys,
)
from jaxssl.corruptions.apply import Corruptor
from jaxssl.errors import UserError
from jaxssl.extensions import look_up
from jaxssl.randomness import check_seed
from jaxssl.ranges import (
    ANY,
    NON_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    Ranges,
    check_numbers,
    check_ranges,
)

Batch = Mapping[str, Any]
Hyper = Mapping[str, Any]
Policy = Callable[[Batch, Hyper], Views]
Pixels = Int[Array, ""] | int
Boxes = tuple[Float[Array, "4"], Float[Array, "4"]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """How two crops of one image are placed.

    Attributes:
      boxes: from a key, the height and width in pixels, and ``hyper`` to the two boxes.
      hyper: the numbers that it reads from ``hyper``, with their ranges.
      check: from the height and width and these numbers; ValueError if no two crops can meet them.
      erase: what is done to the image of view 1, given the box of view 2; None: nothing.
      start: where a recipe starts with the numbers, for those that are not in `NUMBERS`.
    """

    boxes: Callable[[Key[Array, ""], Pixels, Pixels, Hyper], Boxes]
    hyper: Ranges
    check: Callable[..., None]
    erase: Callable[[Array, Array, Hyper], Array] | None = None
    start: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _overlap(key: Key[Array, ""], height: Pixels, width: Pixels, hyper: Hyper) -> Boxes:
    return spatial.overlap_boxes(key, height, width, overlap=hyper["overlap"])


def _overlap_fixed_area(key: Key[Array, ""], height: Pixels, width: Pixels, hyper: Hyper) -> Boxes:
    return spatial.fixed_area_overlap_boxes(
        key, height, width, overlap=hyper["overlap"], area=hyper["crop_area"]
    )


def _patch(key: Key[Array, ""], height: Pixels, width: Pixels, hyper: Hyper) -> Boxes:
    return spatial.patch_boxes(key, height, width, area=hyper["patch_area"])


def _exclusive(key: Key[Array, ""], height: Pixels, width: Pixels, hyper: Hyper) -> Boxes:
    return spatial.exclusive_boxes(key, height, width, gap=hyper["gap"], min_side=hyper["min_side"])


def _non_overlapping(key: Key[Array, ""], height: Pixels, width: Pixels, hyper: Hyper) -> Boxes:
    return spatial.non_overlapping_boxes(key, height, width, min_side=hyper["min_side"])


def _cut_out(image: Array, box: Array, hyper: Hyper) -> Array:
    return spatial.cut_out(image, box)


def _blur_out(image: Array, box: Array, hyper: Hyper) -> Array:
    # A quarter of the side, as nine taps for 32 pixels.
    kernel_size = 2 * (image.shape[0] // 8) + 1
    return spatial.blur_out(image, box, hyper["blur_sigma"], kernel_size)


def _any_size(check: Callable[..., None]) -> Callable[..., None]:
    return lambda height, width, *numbers: check(*numbers)


def _check_exclusive(height: int, width: int, gap: float, min_side: float) -> None:
    spatial.check_exclusive(gap, min_side, height, width)


def _check_non_overlapping(height: int, width: int, min_side: float) -> None:
    spatial.check_non_overlapping(min_side, height, width)


def _check_patch(height: int, width: int, patch_area: float) -> None:
    spatial.check_patch(patch_area, height, width)


def _check_blurred_patch(height: int, width: int, patch_area: float, blur_sigma: float) -> None:
    spatial.check_patch(patch_area, height, width)


NUMBERS = {
    "overlap": 0.3,  # overlap, overlap_fixed_area: area that both crops share
    "crop_area": 0.5,  # overlap_fixed_area: area of each crop
    "patch_area": 0.3,  # patch, cutout, cutout_blur: area of the square
    "gap": 0.1,  # exclusive: area of the band between the crops
    "min_side": 0.2,  # exclusive, non_overlapping: smallest side of a crop
    "blur_sigma": 3.0,  # cutout_blur: standard deviation, pixels of the canonical image
}
"""Where a recipe starts with the numbers of a spatial policy; areas and sides are shares of the
image's. They are leaves of ``hyper``, of recipes with such a policy alone."""

AREA = Range(0.0, 1.0, low_included=False)  # a share of the image's area or side

PAIRS: dict[str, Pair] = {
    "overlap": Pair(_overlap, {"overlap": AREA}, _any_size(spatial.check_overlap)),
    "overlap_fixed_area": Pair(
        _overlap_fixed_area,
        {"overlap": AREA, "crop_area": AREA},
        _any_size(spatial.check_fixed_area),
    ),
    "patch": Pair(_patch, {"patch_area": AREA}, _check_patch),
    "exclusive": Pair(_exclusive, {"gap": SHARE, "min_side": AREA}, _check_exclusive),
    "non_overlapping": Pair(_non_overlapping, {"min_side": AREA}, _check_non_overlapping),
    "cutout": Pair(_patch, {"patch_area": AREA}, _check_patch, _cut_out),
    "cutout_blur": Pair(
        _patch, {"patch_area": AREA, "blur_sigma": NON_NEGATIVE}, _check_blurred_patch, _blur_out
    ),
}
"""Policies that place two crops together; beside them there is ``"multi_view"``."""


def pair_of(policy: str) -> Pair | None:
    """The policy of a name: a key of `PAIRS`, or ``package.module:Name``; None: "multi_view".

    Raises:
      UserError: if there is none.
    """
    return look_up(
        "views.policy",
        policy,
        {"multi_view": None, **PAIRS},
        fits=lambda found: isinstance(found, Pair),
        form="a jaxssl.augment.policies.Pair",
    )


def paired_view(
    batch: Batch, hyper: Hyper, augmentations: tuple[Augmentation, ...], pair: Pair
) -> Views:
    """Two views whose crops are placed by ``pair``; the recipes' own crop boxes are not used.

    Args:
      batch: as `multi_view`'s.
      hyper: ``data_seed`` and what ``pair`` reads; may be traced.
      augmentations: the recipes of the two views.
      pair: the placing.
    """
    canonical = to_float(batch["image"])
    seed, content = hyper["data_seed"], batch["content"]
    pair_keys = jax.vmap(lambda key: jax.random.fold_in(key, int(Draw.PAIR)))(
        view_keys(batch, seed, 0)
    )
    boxes = jax.vmap(lambda key, part: pair.boxes(key, part[0], part[1], hyper))(pair_keys, content)
    images = [canonical, canonical]
    if pair.erase is not None:
        erase = pair.erase
        images[0] = jax.vmap(lambda image, box: erase(image, box, hyper))(canonical, boxes[1])
    return gather_views(
        batch,
        [
            augment_view(
                images[view], view_keys(batch, seed, view), augmentation, content, boxes[view]
            )
            for view, augmentation in enumerate(augmentations)
        ],
    )


def plain_view(batch: Batch, augmentations: tuple[Augmentation, ...]) -> Views:
    """As many test-time images as there are recipes: training without augmentation."""
    images, content = batch["image"], batch["content"]
    upright = jnp.zeros(images.shape[0], bool)
    views = []
    for view in augmentations:
        box = evaluation_boxes(images.shape[1:3], content, view.size)
        views.append((evaluation_view(images, content, view.size), box, upright))
    return gather_views(batch, views)


def recipes(views: ConfigDict) -> tuple[Augmentation, ...]:
    """The recipe of each view of a config's ``views`` group: global crops first, then local ones.

    Raises:
      UserError: if a count or a recipe is not possible.
    """
    made = []
    for name in CROPS:
        if name not in views:
            continue
        check_ranges(f"views.{name}", views[name], {"count": NON_NEGATIVE})
        group = dict(views[name])
        count, second = group.pop("count"), dict(group.pop("second", {}))
        with _named(name):
            for prefix, numbers in (("", group), ("second.", second)):
                for key in numbers:
                    if key not in NUMBERS_OF_A_VIEW:
                        raise UserError(f"{prefix}{key} is no number of a view: remove it.")
            for key, needed in NUMBERS_OF_A_VIEW.items():
                if needed and key not in group:
                    raise UserError(f"{key} is missing: add it, or take a recipe that has it.")
            made += [Augmentation(**group)] * count
            if second and count > 1:
                made[1] = Augmentation(**group | second)
    if views.global_crops.count == 0:
        raise UserError("--config.views.global_crops.count=0 must be at least 1.")
    large, small = made[0].size, made[-1].size
    if len(made) > views.global_crops.count and small >= large:
        # Methods know local views by their size, and would take these for global ones.
        raise UserError(
            f"--config.views.local_crops.size={small} must be below "
            f"--config.views.global_crops.size={large}: lower it, or give "
            "--config.views.local_crops.count=0."
        )
    return tuple(made)


CROPS = ("global_crops", "local_crops")
NUMBERS_OF_A_VIEW = {
    field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(Augmentation)
}
"""By name, and whether a recipe must give it."""


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Adds the flag's place to what a recipe refuses."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--config.views.{name}.{error}") from error


def start_numbers(policy: str) -> dict[str, float]:
    """The leaves that a view policy needs in ``hyper``, from `NUMBERS` or its own `Pair.start`."""
    pair = pair_of(policy)
    return {} if pair is None else {name: {**NUMBERS, **pair.start}[name] for name in pair.hyper}


def policy_hyper(policy: str) -> Ranges:
    """What a view policy reads from ``hyper`` besides ``data_seed``, with ranges.

    Raises:
      UserError: if there is no such policy.
    """
    pair = pair_of(policy)
    return {} if pair is None else pair.hyper


def check_policy(
    views: ConfigDict, path: Mapping[int, Mapping[str, float]], height: int, width: int
) -> None:
    """Refuses numbers that no two crops of an image of this size can meet.

    Args:
      views: the ``views`` group of a config.
      path: by step, what the numbers that the policy reads (`policy_hyper`) are together.
      height: of the image, pixels.
      width: of the image, pixels.

    Raises:
      UserError: naming them, the first step, and what can be met.
    """
    pair = pair_of(views.policy)
    if pair is None:
        return
    for step, numbers in path.items():
        try:
            pair.check(height, width, *(numbers[name] for name in pair.hyper))
        except ValueError as error:
            flags = ", ".join(f"--config.hyper.{name}={numbers[name]}" for name in pair.hyper)
            when = f" at step {step} of their schedules" if len(path) > 1 else ""
            raise UserError(
                f"{flags}{when} with --config.views.policy={views.policy}: {error}"
            ) from error


def check_order(policy: str, order: str) -> None:
    """Refuses a spatial policy where views are not augmented.

    Args:
      policy: ``views.policy``.
      order: ``corruption.order``.

    Raises:
      UserError: naming both.
    """
    if order == "no_aug" and policy != "multi_view":
        raise UserError(
            "--config.corruption.order=no_aug cuts no crops, so that "
            f"--config.views.policy={policy} would place none: give "
            "--config.views.policy=multi_view, or another order."
        )


Finish = Callable[[Array, Batch, int], Float[Array, "b h w c"]]
"""From (images, batch, view number) to what a network sees of any view."""


def make_policy(views: ConfigDict, finish: Finish, *, order: str) -> Policy:
    """The policy that a config describes.

    Args:
      views: the ``views`` group.
      finish: see `make_finisher`.
      order: ``corruption.order``; "no_aug" makes test-time images of every view.

    Returns:
      From a batch and ``hyper`` (``data_seed`` and what the policy reads) to `Views`: normalised,
      bit channels last.

    Raises:
      UserError: if there is no such policy, or it makes another number of views than the config.
    """
    pair = pair_of(views.policy)
    augmentations = recipes(views)
    if pair is not None and len(augmentations) != 2:
        none = " and --config.views.local_crops.count=0" if "local_crops" in views else ""
        raise UserError(
            f"--config.views.policy={views.policy} makes two views and the config has "
            f"{len(augmentations)}: set --config.views.global_crops.count=2{none}."
        )

    def policy(batch: Batch, hyper: Hyper) -> Views:
        if order == "no_aug":
            made = plain_view(batch, augmentations)
        elif pair is None:
            made = multi_view(batch, hyper["data_seed"], augmentations)
        else:
            made = paired_view(batch, hyper, augmentations, pair)
        images = tuple(finish(image, batch, view) for view, image in enumerate(made.images))
        return dataclasses.replace(made, images=images)

    return policy


def make_clean_view(size: int, finish: Finish) -> Callable[[Batch], Float[Array, "b h w c"]]:
    """The test-time images of a run: what its evaluations and its probes embed.

    Not augmented; corrupted like the training images, normalised, with the bit channels that the
    encoder was trained on.

    Args:
      size: side, pixels.
      finish: see `make_finisher`.
    """
    return lambda batch: finish(evaluation_view(batch["image"], batch["content"], size), batch, 0)


def make_finisher(corruption: ConfigDict, normalize_by: ConfigDict, randbit: ConfigDict) -> Finish:
    """The last things done to every view: a late corruption, normalisation, bit channels.

    Args:
      corruption: the ``corruption`` group of a config.
      normalize_by: its ``normalize`` group.
      randbit: its ``randbit`` group.

    Raises:
      UserError: if there is no such corruption, or a number is out of range.
    """
    corruptor = Corruptor.from_config(corruption)
    check_numbers("--config.normalize.mean", normalize_by.mean, ANY)
    check_numbers("--config.normalize.std", normalize_by.std, POSITIVE)
    mean, std = tuple(normalize_by.mean), tuple(normalize_by.std)
    check_ranges("randbit", randbit, {"num_bits": Range(0, bits.MAX_BITS, low_included=True)})
    check_seed("--config.randbit.seed", randbit.seed)

    def finish(images: Array, batch: Batch, view: int) -> Float[Array, "b h w c"]:
        if corruptor.after_augmentation:
            images = corruptor.on_device(images, batch, view)
        images = normalize(images, mean, std)
        if randbit.num_bits == 0:
            return images
        integers = bits.image_integers(
            batch["split"],
            batch["index"],
            batch["epoch"],
            seed=randbit.seed,
            num_bits=randbit.num_bits,
            fresh_per_epoch=randbit.fresh_per_epoch,
        )
        return bits.append_channels(images, bits.bit_channels(integers, randbit.num_bits))

    return finish
