"""The conditions of the reliance fingerprint: what is done to the test images, by name.

Each takes one kind of information away and leaves the rest: global shuffles the layout of parts,
local shuffles the texture within them, gamma the scale of brightness, noise, defocus and JPEG fine
detail, grayscale colour (arXiv:2206.05259, section 3).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group

CLEAN = "clean"
FEWEST_PIXELS = 2  # of a patch's side: a local shuffle of one pixel does nothing
SEVERITIES = (1, 2, 3, 4, 5)
_OF_DETAIL = {"shot_noise": "noise", "defocus_blur": "defocus", "jpeg": "JPEG"}
_LARGE = 64


class Condition(NamedTuple):
    """What is done to the test images.

    Attributes:
      name: for people and files.
      corruption: in place of the run's own.
    """

    name: str
    corruption: ConfigDict


def conditions(
    image_shape: tuple[int, int, int], *, every_severity: bool = False
) -> list[Condition]:
    """The default conditions as far as images of a size allow them, the clean one first.

    All of them come before the test images are brought to the views' size, whatever the order of
    corruption and augmentation that the run was trained with.

    Args:
      image_shape: (height, width, channels) of the canonical image.
      every_severity: noise, defocus and JPEG at severities 1 to 5, and not at 3 alone.
    """
    height, width, channels = image_shape
    found = [Condition(CLEAN, corruption_group())]
    for kind, patches in (("global", (2, 4, 8)), ("local", (8, 4, 2))):
        for count in patches:
            whole = height % count == 0 and width % count == 0
            if whole and min(height, width) // count >= FEWEST_PIXELS:
                found.append(_condition(f"{kind} {count}", f"{kind}_shuffle", patches=count))
    found.append(_condition("gamma 0.2", "gamma", exponent=0.2))
    constants = "cifar" if max(height, width) <= _LARGE else "imagenet"
    for name, said in _OF_DETAIL.items():
        for severity in SEVERITIES if every_severity else (3,):
            numbers = {"severity": severity, "constants": constants}
            found.append(_condition(f"{said} {severity}", name, **numbers))
    if channels == 3:
        found.append(_condition("grayscale", "grayscale"))
    return found


def _condition(name: str, corruption: str, **settings: object) -> Condition:
    group = corruption_group()
    group.name = corruption
    group.update(settings)
    return Condition(name, group)
