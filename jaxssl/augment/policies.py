"""From a config to views: the policy, then a late corruption, normalisation, appended bits.

A spatial policy (Jha and Tuytelaars, 2024) places the crops of two views together; all else that is
drawn for a view stays what `multi_view` draws for it, so that runs which differ in the policy are
paired.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment import bits, spatial
from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.views import (
    Draw,
    Views,
    augment_view,
    evaluation_box,
    evaluation_view,
    gather_views,
    multi_view,
    normalize,
    to_float,
    view_keys,
)
from jaxssl.corruptions.apply import Corruptor
from jaxssl.errors import UserError, choose
from jaxssl.randomness import check_seed

Batch = Mapping[str, Any]
Hyper = Mapping[str, Any]
Policy = Callable[[Batch, Hyper], Views]
Boxes = tuple[Float[Array, "4"], Float[Array, "4"]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """How two crops of one image are placed.

    Attributes:
      boxes: from a key, the height and width in pixels, and ``hyper`` to the two boxes.
      hyper: the numbers that it reads from ``hyper``.
      check: from the height and width and these numbers; ValueError if no two crops can meet them.
      erase: what is done to the image of view 1, given the box of view 2; None: nothing.
    """

    boxes: Callable[[Key[Array, ""], int, int, Hyper], Boxes]
    hyper: tuple[str, ...]
    check: Callable[..., None]
    erase: Callable[[Array, Array, Hyper], Array] | None = None


def _overlap(key: Key[Array, ""], height: int, width: int, hyper: Hyper) -> Boxes:
    return spatial.overlap_boxes(key, height, width, overlap=hyper["overlap"])


def _overlap_fixed_area(key: Key[Array, ""], height: int, width: int, hyper: Hyper) -> Boxes:
    return spatial.fixed_area_overlap_boxes(
        key, height, width, overlap=hyper["overlap"], area=hyper["crop_area"]
    )


def _patch(key: Key[Array, ""], height: int, width: int, hyper: Hyper) -> Boxes:
    return spatial.patch_boxes(key, height, width, area=hyper["patch_area"])


def _exclusive(key: Key[Array, ""], height: int, width: int, hyper: Hyper) -> Boxes:
    return spatial.exclusive_boxes(key, height, width, gap=hyper["gap"], min_side=hyper["min_side"])


def _non_overlapping(key: Key[Array, ""], height: int, width: int, hyper: Hyper) -> Boxes:
    return spatial.non_overlapping_boxes(key, height, width, min_side=hyper["min_side"])


def _cut_out(image: Array, box: Array, hyper: Hyper) -> Array:
    return spatial.cut_out(image, box)


def _blur_out(image: Array, box: Array, hyper: Hyper) -> Array:
    # A quarter of the side, as nine taps for 32 pixels.
    kernel_size = 2 * (image.shape[0] // 8) + 1
    return spatial.blur_out(image, box, hyper["blur_sigma"], kernel_size)


def _any_size(check: Callable[..., None]) -> Callable[..., None]:
    return lambda height, width, *numbers: check(*numbers)


def _check_patch(height: int, width: int, patch_area: float) -> None:
    spatial.check_patch(patch_area, height, width)


def _check_blurred_patch(height: int, width: int, patch_area: float, blur_sigma: float) -> None:
    spatial.check_patch(patch_area, height, width)


PAIRS: dict[str, Pair] = {
    "overlap": Pair(_overlap, ("overlap",), _any_size(spatial.check_overlap)),
    "overlap_fixed_area": Pair(
        _overlap_fixed_area, ("overlap", "crop_area"), _any_size(spatial.check_fixed_area)
    ),
    "patch": Pair(_patch, ("patch_area",), _check_patch),
    "exclusive": Pair(_exclusive, ("gap", "min_side"), _any_size(spatial.check_exclusive)),
    "non_overlapping": Pair(
        _non_overlapping, ("min_side",), _any_size(spatial.check_non_overlapping)
    ),
    "cutout": Pair(_patch, ("patch_area",), _check_patch, _cut_out),
    "cutout_blur": Pair(_patch, ("patch_area", "blur_sigma"), _check_blurred_patch, _blur_out),
}
"""Policies that place two crops together; beside them there is ``"multi_view"``."""


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
    height, width = canonical.shape[1:3]
    seed = hyper["data_seed"]
    pair_keys = jax.vmap(lambda key: jax.random.fold_in(key, int(Draw.PAIR)))(
        view_keys(batch, seed, 0)
    )
    boxes = jax.vmap(lambda key: pair.boxes(key, height, width, hyper))(pair_keys)
    images = [canonical, canonical]
    if pair.erase is not None:
        erase = pair.erase
        images[0] = jax.vmap(lambda image, box: erase(image, box, hyper))(canonical, boxes[1])
    return gather_views(
        batch,
        [
            augment_view(images[view], view_keys(batch, seed, view), augmentation, boxes[view])
            for view, augmentation in enumerate(augmentations)
        ],
    )


def plain_view(batch: Batch, augmentations: tuple[Augmentation, ...]) -> Views:
    """As many test-time images as there are recipes: training without augmentation."""
    rows, (height, width) = batch["image"].shape[0], batch["image"].shape[1:3]
    upright = jnp.zeros(rows, bool)
    views = []
    for view in augmentations:
        box = jnp.tile(evaluation_box(height, width, view.size), (rows, 1))
        views.append((evaluation_view(batch["image"], view.size), box, upright))
    return gather_views(batch, views)


def recipes(views: ConfigDict) -> tuple[Augmentation, ...]:
    """The recipe of each view of a config's ``views`` group, view1 first."""
    # By number, not by name: view10 comes after view2.
    names = sorted((n for n in views if n != "policy"), key=lambda n: int(n.removeprefix("view")))
    return tuple(Augmentation(**views[name]) for name in names)


def policy_hyper(config: ConfigDict) -> tuple[str, ...]:
    """Names of what the policy of a config reads from ``hyper``, besides ``data_seed``."""
    names = {"multi_view": (), **{name: pair.hyper for name, pair in PAIRS.items()}}
    return choose("views.policy", config.views.policy, names)


def check_policy(config: ConfigDict, height: int, width: int) -> None:
    """Refuses numbers that no two crops of an image of this size can meet.

    Raises:
      UserError: naming them, and what can be met.
    """
    names = policy_hyper(config)
    if config.views.policy == "multi_view":
        return
    augmentations = recipes(config.views)
    if len(augmentations) != 2:
        raise UserError(
            f"views.policy={config.views.policy!r} makes two views and the config has "
            f"{len(augmentations)}: keep view1 and view2 alone."
        )
    try:
        PAIRS[config.views.policy].check(height, width, *(config.hyper[name] for name in names))
    except ValueError as error:
        raise UserError(f"views.policy={config.views.policy!r}: {error}") from error


def make_policy(config: ConfigDict) -> Policy:
    """The policy that a config describes.

    Args:
      config: reads ``views``, ``normalize``, ``corruption`` and ``randbit``.

    Returns:
      From a batch and ``hyper`` (``data_seed`` and what the policy reads) to `Views`: normalised,
      bit channels last.

    Raises:
      UserError: if there is no such policy or corruption.
    """
    policy_hyper(config)
    augmentations = recipes(config.views)
    finish = make_finisher(config)

    def policy(batch: Batch, hyper: Hyper) -> Views:
        if config.corruption.order == "no_aug":
            views = plain_view(batch, augmentations)
        elif config.views.policy == "multi_view":
            views = multi_view(batch, hyper["data_seed"], augmentations)
        else:
            views = paired_view(batch, hyper, augmentations, PAIRS[config.views.policy])
        images = tuple(finish(image, batch, view) for view, image in enumerate(views.images))
        return dataclasses.replace(views, images=images)

    return policy


def make_clean_view(config: ConfigDict) -> Callable[[Batch], Float[Array, "b h w c"]]:
    """The test-time images of a run: what its monitor and its probes embed.

    Not augmented; corrupted like the training images, normalised, with the bit channels that the
    encoder was trained on.
    """
    finish = make_finisher(config)
    size = config.views.view1.size
    return lambda batch: finish(evaluation_view(batch["image"], size), batch, 0)


def make_finisher(config: ConfigDict) -> Callable[[Array, Batch, int], Float[Array, "b h w c"]]:
    """From (images, batch, view number) to what a network sees of any view.

    A late corruption, normalisation, bit channels, in this order; the images are float32 in [0, 1].
    """
    corruptor = Corruptor.from_config(config.corruption)
    mean, std = tuple(config.normalize.mean), tuple(config.normalize.std)
    randbit = config.randbit
    if not 0 <= randbit.num_bits <= bits.MAX_BITS:
        raise UserError(
            f"randbit.num_bits={randbit.num_bits} cannot be: give 1 to {bits.MAX_BITS}, or 0 for "
            "none."
        )
    check_seed("randbit.seed", randbit.seed)

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
