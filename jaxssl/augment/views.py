"""View policies: what a method sees of a batch, made on the device.

A policy takes a batch as it reached the device (images uint8) and returns `Views`, float32 in
[0, 1]. Everything that is drawn for a sample depends on (data_seed, split, epoch, index, view) and
on the operation's number in `Draw` alone: not on the batch it is in, nor on which other operations
are on.
"""

import dataclasses
import enum
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt, UInt8

from jaxssl.augment import ops
from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.resample import random_crop_box, resized_crop
from jaxssl.errors import UserError
from jaxssl.randomness import Purpose, sample_keys
from jaxssl.words import counted


class Draw(enum.IntEnum):
    """Number of each operation's stream. Part of every published result: never renumber."""

    CROP = 0
    FLIP = 1
    JITTER = 2
    JITTER_APPLIED = 3
    GRAYSCALE = 4
    BLUR = 5
    BLUR_APPLIED = 6
    SOLARIZE = 7
    PAIR = 8  # two crops drawn together; with the key of view 0


@dataclasses.dataclass(frozen=True)
class Views:
    """What a policy makes of a batch and a method consumes; a pytree.

    Attributes:
      images: one float32 [B, H, W, C] a view; sides may differ between views.
      boxes: one float32 [B, 4] a view: (y0, x0, y1, x1), pixels of the canonical image.
      flipped: one bool [B] a view: mirrored left and right after the crop.
      targets: what the data set has to predict, arrays that lead with B.
      index: int32 [B], position in the original split.
      epoch: int32 [B].
      split: int32 [B], number in `Split` of the original split.
    """

    images: tuple[Float[Array, "b _ _ c"], ...]
    boxes: tuple[Float[Array, "b 4"], ...]
    flipped: tuple[Bool[Array, " b"], ...]
    targets: dict[str, Array]
    index: Int[Array, " b"]
    epoch: Int[Array, " b"]
    split: Int[Array, " b"]


def _flatten_views(views: Views) -> tuple[list[tuple[jax.tree_util.GetAttrKey, Any]], None]:
    names = [field.name for field in dataclasses.fields(Views)]
    return [(jax.tree_util.GetAttrKey(name), getattr(views, name)) for name in names], None


def _unflatten_views(_: None, children: Iterable[Any]) -> Views:
    # Not through __init__: jax builds trees of shapes and shardings too, which no check would pass.
    views = object.__new__(Views)
    for field, child in zip(dataclasses.fields(Views), children, strict=True):
        object.__setattr__(views, field.name, child)
    return views


jax.tree_util.register_pytree_with_keys(Views, _flatten_views, _unflatten_views)


def augment_view(
    images: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    augmentation: Augmentation,
    content: Int[Array, "b 2"],
    boxes: Float[Array, "b 4"] | None = None,
) -> tuple[Float[Array, "b size size c"], Float[Array, "b 4"], Bool[Array, " b"]]:
    """One view of each image.

    Args:
      images: float32 in [0, 1].
      keys: one a sample; nothing else decides what is drawn for it.
      augmentation: the recipe.
      content: height and width of the part of each image, from the top left corner, that holds the
        picture and that crops are drawn from.
      boxes: crops to make in place of those drawn; all else is drawn as it is without.

    Returns:
      The views, float32 in [0, 1] and not normalised; the crop boxes; which are mirrored.

    Raises:
      UserError: if a colour operation is on and the images have not 3 channels.
    """
    channels = images.shape[-1]
    if channels != 3 and (augmentation.jitter_p > 0 or augmentation.grayscale_p > 0):
        raise UserError(
            f"colour jitter and grayscale need RGB images, 3 channels, and these have {channels}: "
            "set --config.views.global_crops.jitter_p=0 and "
            "--config.views.global_crops.grayscale_p=0 (likewise of local_crops)."
        )
    return _augmented(images, keys, augmentation, content, boxes)


# Views of one recipe are traced once.
@functools.partial(jax.jit, static_argnames="augmentation")
def _augmented(
    images: Array,
    keys: Array,
    augmentation: Augmentation,
    content: Array,
    boxes: Array | None,
) -> tuple[Array, Array, Array]:
    drawn = jax.vmap(lambda key, part: draw_view(key, part[0], part[1], augmentation))(
        keys, content
    )
    if boxes is not None:
        drawn = drawn._replace(box=boxes)
    views = jax.vmap(lambda image, drawn: apply_view(image, drawn, augmentation))(images, drawn)
    return views, drawn.box, drawn.flipped


class ViewDraw(NamedTuple):
    """All that is drawn for one view of one image.

    Attributes:
      box: float32 (y0, x0, y1, x1), pixels of the canonical image.
      flipped: bool, as are `jittered`, `grayscaled` and `solarized`: whether it is applied.
      jitter: what `jittered` applies.
      sigma: float32, standard deviation of the blur, pixels of the view; 0 for no blur.
    """

    box: Float[Array, "4"]
    flipped: Bool[Array, ""]
    jittered: Bool[Array, ""]
    jitter: ops.ColorJitter
    grayscaled: Bool[Array, ""]
    sigma: Float[Array, ""]
    solarized: Bool[Array, ""]


def draw_view(
    key: Key[Array, ""],
    height: Int[Array, ""] | int,
    width: Int[Array, ""] | int,
    augmentation: Augmentation,
) -> ViewDraw:
    """Draws all that one view needs; every operation has a stream of its own.

    So what is drawn for one does not depend on whether another is on, nor on its settings.
    """
    a = augmentation

    def stream(draw: Draw) -> Key[Array, ""]:
        return jax.random.fold_in(key, int(draw))

    sigma = ops.draw_sigma(stream(Draw.BLUR), a.blur_sigma)
    return ViewDraw(
        box=random_crop_box(
            stream(Draw.CROP),
            height,
            width,
            scale=a.crop_scale,
            ratio=a.crop_ratio,
            subpixel=a.crop_subpixel,
        ),
        flipped=ops.draw_applied(stream(Draw.FLIP), a.flip_p),
        jittered=ops.draw_applied(stream(Draw.JITTER_APPLIED), a.jitter_p),
        jitter=ops.draw_color_jitter(
            stream(Draw.JITTER),
            brightness=a.brightness,
            contrast=a.contrast,
            saturation=a.saturation,
            hue=a.hue,
        ),
        grayscaled=ops.draw_applied(stream(Draw.GRAYSCALE), a.grayscale_p),
        sigma=jnp.where(ops.draw_applied(stream(Draw.BLUR_APPLIED), a.blur_p), sigma, 0.0),
        solarized=ops.draw_applied(stream(Draw.SOLARIZE), a.solarize_p),
    )


def apply_view(
    image: Float[Array, "h w c"], drawn: ViewDraw, augmentation: Augmentation
) -> Float[Array, "size size c"]:
    """One view of one image in [0, 1]; operations whose ``p`` is 0 are not compiled at all."""
    a = augmentation
    image = resized_crop(image, drawn.box, a.size, filter=a.crop_filter, antialias=a.crop_antialias)
    if a.flip_p > 0:
        image = ops.flip(image, drawn.flipped)
    if a.jitter_p > 0:
        jittered = ops.color_jitter(image, drawn.jitter, a.hue_space)
        image = jnp.where(drawn.jittered, jittered, image)
    if a.grayscale_p > 0:
        image = jnp.where(drawn.grayscaled, ops.grayscale(image), image)
    if a.blur_p > 0:
        # Sigma 0, not a second `where`: that would make XLA compute the image before it twice.
        image = ops.gaussian_blur(image, drawn.sigma, a.blur_kernel_size)
    if a.solarize_p > 0:
        image = jnp.where(drawn.solarized, ops.solarize(image, a.solarize_threshold), image)
    return image


def multi_view(
    batch: Mapping[str, Any],
    data_seed: UInt[Array, ""] | int,
    augmentations: tuple[Augmentation, ...],
) -> Views:
    """One independent view a recipe: SimCLR's two, BYOL's asymmetric two, multi-crop's many.

    Args:
      batch: ``image`` uint8 [B, H, W, C], ``content`` int32 [B, 2], ``index``, ``split`` and
        ``epoch`` int32 [B], ``targets``.
      data_seed: seed of the data stream; may be traced.
      augmentations: the recipe of view 0, 1, ...

    Raises:
      UserError: if a colour operation is on and the images have not 3 channels.
    """
    canonical = to_float(batch["image"])
    views = [
        augment_view(canonical, view_keys(batch, data_seed, view), augmentation, batch["content"])
        for view, augmentation in enumerate(augmentations)
    ]
    return gather_views(batch, views)


def view_keys(
    batch: Mapping[str, Any], data_seed: UInt[Array, ""] | int, view: int
) -> Key[Array, " b"]:
    """The key of each sample's draws for one view."""
    return sample_keys(
        data_seed, Purpose.VIEW, batch["split"], batch["epoch"], batch["index"], view
    )


def gather_views(batch: Mapping[str, Any], views: Iterable[tuple[Array, Array, Array]]) -> Views:
    """`Views` of a batch from (images, boxes, flipped) a view."""
    images, boxes, flipped = zip(*views, strict=True)
    return Views(
        images=images,
        boxes=boxes,
        flipped=flipped,
        targets=dict(batch["targets"]),
        index=batch["index"],
        epoch=batch["epoch"],
        split=batch["split"],
    )


def evaluation_view(
    images: UInt8[Array, "b h w c"], content: Int[Array, "b 2"], size: int
) -> Float[Array, "b {size} {size} c"]:
    """The deterministic test-time images, float32 in [0, 1].

    The part of them that `evaluation_boxes` says, resized antialiased and bicubic.

    Args:
      images: as the data set has them.
      content: see `augment_view`.
      size: side of the result, pixels.
    """
    images = to_float(images)
    shape = images.shape[1], images.shape[2]
    if shape == (size, size):
        return images
    return jax.vmap(
        lambda image, box: resized_crop(image, box, size, filter="bicubic", antialias=True)
    )(images, evaluation_boxes(shape, content, size))


def evaluation_boxes(
    shape: tuple[int, int], content: Int[Array, "b 2"], size: int
) -> Float[Array, "b 4"]:
    """What `evaluation_view` shows of each image: (y0, x0, y1, x1), pixels.

    The whole of an image that already has the size. Otherwise the central square of the picture:
    all of the shorter side for results of up to 32 pixels, 0.875 of it for larger ones (SimCLR,
    arXiv:2002.05709).

    Args:
      shape: height and width of the images, pixels.
      content: see `augment_view`.
      size: side of the result, pixels.
    """
    if shape == (size, size):
        content = jnp.full_like(content, size)
    side = content.min(axis=1)
    if shape != (size, size) and size > 32:
        side = jnp.round(0.875 * side).astype(jnp.int32)
    corner = (content - side[:, None]) // 2
    return jnp.concatenate([corner, corner + side[:, None]], axis=1).astype(jnp.float32)


def to_float(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """uint8 in [0, 255] to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def normalize(
    images: Float[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w c"]:
    """(images - mean) / std, channel by channel; either may be empty, for none.

    Args:
      images: float32 in [0, 1].
      mean: one a channel, subtracted.
      std: one a channel, divided by after that.

    Raises:
      UserError: if one has another number of values than the images have channels.
    """
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, channels):
            raise UserError(
                f"--config.normalize.{name}={values} has {counted(len(values), 'value')} for "
                f"images of {counted(channels, 'channel')}: give one a channel, or () for none."
            )
    if mean:
        images = images - jnp.array(mean, dtype=jnp.float32)
    if std:
        images = images / jnp.array(std, dtype=jnp.float32)
    return images
