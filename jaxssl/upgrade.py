"""Runs of older versions, read as if this one had written them.

``config.json`` and each checkpoint carry the number of their format. What a format lacks is filled
with the value that leaves the old meaning as it was; what has moved is renamed. Bit-identity is
claimed within one format: `changes` says what computes otherwise since.

    format 1   before schedules of any scalar, named layers and groups of crops
    format 2   before JPEGs could be decoded at a fraction of their size
    format 3   before sections other than kNN during training, and classifiers beside the method
    format 4   today
"""

import fractions
import re
from collections.abc import Mapping
from typing import Any

FORMAT = 4

_CHANGES = {
    1: (
        "schedules count epochs by images, and one that moves by the epoch never a step late",
        "BatchNorm groups hold all views of their images (SimCLR's and Supervised's held one view)",
        "ShuffleBN draws its permutation from the step",
        "LARS shrinks a weight whose gradient is zero by the trust ratio of its decay",
    ),
    2: (),
    3: (),
}

_POLICY_NUMBERS = {
    "overlap": ("overlap",),
    "overlap_fixed_area": ("overlap", "crop_area"),
    "patch": ("patch_area",),
    "exclusive": ("gap", "min_side"),
    "non_overlapping": ("min_side",),
    "cutout": ("patch_area",),
    "cutout_blur": ("patch_area", "blur_sigma"),
}
_ALL_POLICY_NUMBERS = {name for names in _POLICY_NUMBERS.values() for name in names}

# Name in a state of today -> name in a checkpoint of that format.
_RENAMED = {
    1: {
        "rest/queue/rows/value": "rest/queue/value",
        "rest/queue/position/value": "rest/position/value",
    },
    2: {},
    3: {},
}
# The kernel that meets the image, whose input channels are those of the views.
_FIRST_KERNELS = {
    "convn": "params/encoder/convs/0/conv/kernel/value",
    "resnet18": "params/encoder/stem/conv/kernel/value",
    "resnet34": "params/encoder/stem/conv/kernel/value",
    "resnet50": "params/encoder/stem/conv/kernel/value",
}
_CLASSIFIER = "params/classifier/kernel/value"
# Leaves that are no longer kept.
_DROPPED: dict[int, tuple[str, ...]] = {
    1: ("rest/shuffle_key/value", "rest/updates/value"),
    2: (),
    3: (),
}


def changes(form: int) -> list[str]:
    """What computes otherwise since a format, one clause each; empty for today's."""
    return [clause for number in range(form, FORMAT) for clause in _CHANGES[number]]


def upgrade_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of any format up to today's, in today's form.

    Args:
      content: with ``config``, and ``format`` unless it is 1. As JSON has it: lists, no tuples.

    Returns:
      The same with today's ``config``; ``format`` stays the one it was written in.
    """
    form = content.get("format", 1)
    config = content["config"]
    if form < 2:
        config = _config_from_1(config)
    if form < 3:
        config = _config_from_2(config)
    if form < 4:
        config = _config_from_3(config)
    return {**content, "format": form, "config": config}


def _config_from_1(old: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in old.items()
    }
    schedule, monitor, hyper = config.pop("schedule"), config.pop("monitor"), config["hyper"]
    rate = hyper["learning_rate"]
    config["epochs"] = schedule["epochs"]
    hyper["learning_rate"] = {
        "value": rate,
        "warmup_epochs": schedule["warmup_epochs"],
        "warmup_from": 0.0,
        "shape": schedule["decay"],
        "end": schedule["final"] * rate,
        "granularity": schedule["granularity"],
    }
    read = _POLICY_NUMBERS.get(config["views"]["policy"], ())
    for name in _ALL_POLICY_NUMBERS - set(read):
        hyper.pop(name, None)
    config["evals"] = {
        "knn": {
            "every": monitor["knn_every_epochs"],
            "split": monitor["split"],
            "protocol": monitor["protocol"],
            "layer": monitor["layer"],
        }
    }
    config["views"] = _views_from_1(config["views"])
    optimizer = config["optimizer"]
    optimizer["groups"] = [[*row, True] for row in optimizer["groups"]]
    optimizer["clip_norm"] = 0.0
    if "head" in config["method"]:
        norms = {key: config["encoder"][key] for key in ("bn_momentum", "bn_epsilon", "bn_groups")}
        config["method"]["head"] = {**config["method"]["head"], **norms}
    config["data"] = {"fit": "crop", "background": [255, 255, 255], "scale": [], **config["data"]}
    config["run"] = {"save_every_minutes": 0.0, **config["run"]}
    return config


def _config_from_2(old: Mapping[str, Any]) -> dict[str, Any]:
    return {**old, "data": {**old["data"], "jpeg_margin": 0.0}}


_SECTIONS_OF_4 = (
    "linear",
    "few_shot",
    "geometry",
    "alignment",
    "dense",
    "calibration",
    "fingerprint",
    "online",
)


def _config_from_3(old: Mapping[str, Any]) -> dict[str, Any]:
    neighbours = {name: {"section": "knn", **group} for name, group in old["evals"].items()}
    never = {"every": 0.0, "split": "validation", "layer": "pooled"}
    others = {name: {"section": name, **never} for name in _SECTIONS_OF_4}
    online = {"learning_rate": 0.0, "momentum": 0.9, "layer": "pooled"}
    return {**old, "evals": {**others, **neighbours}, "online": online}


def _views_from_1(old: Mapping[str, Any]) -> dict[str, Any]:
    numbers = sorted((n for n in old if n != "policy"), key=lambda n: int(n.removeprefix("view")))
    views = [dict(old[name]) for name in numbers]
    largest = max(view["size"] for view in views)
    groups = {
        "global_crops": [view for view in views if view["size"] == largest],
        "local_crops": [view for view in views if view["size"] < largest],
    }
    new: dict[str, Any] = {"policy": old["policy"]}
    for name, members in groups.items():
        if members:
            new[name] = {**members[0], "count": len(members)}
    if len(groups["global_crops"]) > 1:
        first, second = groups["global_crops"][:2]
        differing = {key: second[key] for key in first if second[key] != first[key]}
        if differing:
            new["global_crops"]["second"] = differing
    return new


def spec_of(content: Mapping[str, Any], leaves: Mapping[str, str]) -> dict[str, Any]:
    """What `jaxssl.methods.Spec.to_json` would have noted of a run of format 1.

    Args:
      content: its ``config.json`` after `upgrade_config`.
      leaves: shapes of the leaves of one of its checkpoints, such as ``float32[3,3,1,4]``, by name.
        Without ``params/classifier`` the number of classes is not known, nor needed: None.
    """
    config, data = content["config"], content["data"]
    images, batch = data["examples"], config["batch_size"]
    steps_per_epoch = fractions.Fraction(images, batch)
    classes = _sizes(leaves[_CLASSIFIER])[-1] if _CLASSIFIER in leaves else None
    return {
        "num_examples": data["original_size"],
        "num_classes": classes,
        "channels": _sizes(leaves[_FIRST_KERNELS[config["encoder"]["name"]]])[-2],
        "image_size": list(data["image_shape"][:2]),
        "total_steps": int(images * config["epochs"] // batch),
        "steps_per_epoch": [steps_per_epoch.numerator, steps_per_epoch.denominator],
    }


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in re.findall(r"\d+", shape.partition("[")[2])]


def saved_names(form: int, names: list[str]) -> dict[str, str]:
    """The name that each leaf of a state of today has in a checkpoint of a format.

    Args:
      form: format of the checkpoint.
      names: ``rest/queue/rows/value`` ...
    """
    found = {name: name for name in names}
    for number in reversed(range(form, FORMAT)):
        found = {name: _RENAMED[number].get(before, before) for name, before in found.items()}
    return found


def dropped(form: int) -> set[str]:
    """Leaves of a checkpoint of a format that a state of today does without."""
    return {name for number in range(form, FORMAT) for name in _DROPPED[number]}
