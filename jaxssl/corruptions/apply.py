"""A config's corruption with its draws: on the host before augmentation, or on the device after.

What is drawn once holds for all images of all splits and depends on ``corruption.seed`` alone; what
is drawn for an image depends on that seed, the image's split and its index.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8
from ml_collections import ConfigDict

from jaxssl.corruptions.ops import CORRUPTIONS, Corruption
from jaxssl.errors import UserError, choose
from jaxssl.extensions import look_up
from jaxssl.randomness import Purpose, Split, check_seed, host_bits, sample_keys

ORDERS = ("corrupt_aug", "aug_corrupt", "no_aug")
DRAWN = "corruption"  # key of a batch: what was drawn on the host for each image


def corruption_group() -> ConfigDict:
    """A config's ``corruption`` group: an intervention on the images of every split."""
    corruption = ConfigDict()
    corruption.name = "none"  # a key of jaxssl.corruptions.ops.CORRUPTIONS
    corruption.patches = 4  # of the shuffles: N, for N x N patches
    corruption.per_image = False  # of the shuffles: a permutation of each image's own
    corruption.exponent = 0.2  # of gamma
    corruption.severity = 3  # of noise, blur and JPEG: 1 to 5
    corruption.constants = "cifar"  # those of CIFAR-10-C, or "imagenet", of ImageNet-C
    corruption.seed = 0  # of permutations and noise
    corruption.order = "corrupt_aug"  # before augmentation; "aug_corrupt": after it; "no_aug"
    return corruption


def setting_name(group: ConfigDict) -> str:
    """A corruption as part of a file's name: what differs from the defaults."""
    defaults = corruption_group()
    changed = [key for key in group if key not in defaults or group[key] != defaults[key]]
    changed = [key for key in changed if key != "name"]
    return "-".join([group.name, *(f"{key}={group[key]}" for key in changed)])


def check_named(group: ConfigDict) -> None:
    """Refuses settings of a corruption, but for its order, where none is named.

    Raises:
      UserError: naming the first of them.
    """
    defaults = corruption_group()
    if group.name != defaults.name:
        return
    for key, value in defaults.items():
        if key != "order" and group[key] != value:
            raise UserError(
                f"--config.corruption.{key}={group[key]} has no effect without a corruption: give "
                "--config.corruption.name too, or leave it out."
            )


def _refusal(name: str, error: ValueError) -> UserError:
    """What a corruption says of a setting, which it names first, or of the images."""
    key, equals, _ = str(error).partition("=")
    flag = "" if equals and key in corruption_group() else f"name={name}: "
    return UserError(f"--config.corruption.{flag}{error}")


@dataclasses.dataclass(frozen=True)
class Corruptor:
    """A corruption, its seed, and whether it comes before augmentation.

    Attributes:
      name: of the corruption.
      corruption: what is done to an image.
      seed: of everything drawn for it.
      order: "corrupt_aug", corruption first; "aug_corrupt", last; "no_aug", without augmentation.
    """

    name: str
    corruption: Corruption
    seed: int
    order: str

    @classmethod
    def from_config(cls, group: ConfigDict) -> "Corruptor":
        """The corruption of a config's ``corruption`` group.

        Raises:
          UserError: if there is no such corruption or a setting is out of range.
        """
        build = look_up(
            "corruption.name", group.name, CORRUPTIONS, fits=callable, form="a function"
        )
        order = choose("corruption.order", group.order, {name: name for name in ORDERS})
        try:
            corruption = build(group)
        except ValueError as error:
            raise _refusal(group.name, error) from error
        if order == "aug_corrupt" and not corruption.on_device:
            raise UserError(
                f"--config.corruption.name={group.name} runs on the host alone, before "
                "augmentation: use --config.corruption.order=corrupt_aug or no_aug."
            )
        return cls(
            group.name, corruption, check_seed("--config.corruption.seed", group.seed), order
        )

    @property
    def after_augmentation(self) -> bool:
        """Whether the device has to do it."""
        return self.order == "aug_corrupt"

    def draw_once(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """What all images of this shape [H, W, C] share."""
        return self._draw(Split.TRAIN, 0, shape)

    def draw_each(self, split: np.ndarray, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What is drawn for each image [H, W, C], stacked."""
        pairs = zip(split.tolist(), index.tolist(), strict=True)
        drawn = [self._draw(Split(s), i, shape) for s, i in pairs]
        return np.stack([d for d in drawn if d is not None])

    def _draw(self, split: Split, index: int, shape: tuple[int, ...]) -> np.ndarray | None:
        words = host_bits(self.seed, Purpose.CORRUPTION, split, 0, index).random_raw
        try:
            return self.corruption.draw(words, shape)
        except ValueError as error:
            raise _refusal(self.name, error) from error

    def on_host(self, batch: Mapping[str, Any]) -> UInt8[np.ndarray, "b h w c"]:
        """The corrupted images of a batch.

        Raises:
          UserError: if the images do not suit the corruption.
        """
        images = batch["image"]
        drawn: np.ndarray | None = None
        if self.corruption.drawn == "once":
            drawn = self.draw_once(images.shape[1:])
        elif self.corruption.drawn != "nothing":
            drawn = self.draw_each(batch["split"], batch["index"], images.shape[1:])
        try:
            return self.corruption(images, drawn)
        except ValueError as error:
            raise _refusal(self.name, error) from error

    def on_device(
        self, images: Float[Array, "b h w c"], batch: Mapping[str, Any], view: int
    ) -> Float[Array, "b h w c"]:
        """The corrupted images, float32 in [0, 1]; permutations of single images come in the batch.

        Raises:
          UserError: if the images do not suit the corruption.
        """
        drawn: Shaped[Array, "..."] | np.ndarray | None = None
        if self.corruption.drawn == "once":
            drawn = self.draw_once(images.shape[1:])
        elif self.corruption.drawn == "image":
            drawn = batch[DRAWN]
        elif self.corruption.drawn == "pixel":
            drawn = self._uniforms(images, batch, view)
        try:
            return self.corruption(images, drawn)
        except ValueError as error:
            raise UserError(
                f"{_refusal(self.name, error)} (After augmentation it meets view {view + 1}; with "
                "--config.corruption.order=corrupt_aug it would meet the whole image.)"
            ) from error

    def _uniforms(self, images: Array, batch: Mapping[str, Any], view: int) -> Array:
        """Noise of a view's own: unlike a permutation it need not be the same for all views."""
        keys = sample_keys(
            self.seed, Purpose.CORRUPTION, batch["split"], batch["epoch"], batch["index"], view
        )
        shape = images.shape[1:]
        return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)
