"""Our encoders with torchvision's and timm's weights give what those networks give.

The numbers are those that `backbones.py` wrote; see there. The two sides draw the same weights.
"""

import pathlib

import jax
import numpy as np
import pytest
from by_name import digest, from_text, images, weights
from flax import nnx
from quick_compilation import quick_jit
from support import unchecked

from configs.common import encoder_group, vit_group
from jaxssl.errors import UserError
from jaxssl.models import build_encoder, with_weights

STORED = np.load(pathlib.Path(__file__).parent / "backbones.npz")
SIZE = 64


def resnet(name, width=64):
    group = encoder_group()
    group.update(name=name, width=width, stem="imagenet", dtype="float64")
    return "resnet", group


def vit(variant, **changes):
    group = vit_group(variant, SIZE, 16)
    group.update(dtype="float64", **changes)
    return "vit", group


NETS = {
    "resnet18": resnet("resnet18"),
    "resnet18_timm": resnet("resnet18"),
    "resnet50": resnet("resnet50"),
    "resnet50_doubled": resnet("resnet50", width=128),
    "vit_tiny": vit("tiny"),
    "vit_small": vit("small"),
    "vit_torchvision": vit("tiny", width=48, depth=3, heads=3, stages=(1, 3)),
}
# The others are these in another size, or under the same names.
LONG = ("resnet50_doubled", "resnet18_timm", "vit_small")


def abstract(group):
    """Graph and state of the encoder as shapes."""
    return nnx.split(nnx.eval_shape(lambda: build_encoder(group, 3, nnx.Rngs(0))))


def foreign(name):
    """Its weights."""
    return weights(from_text(STORED[f"{name}/names"]))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in NETS]
)
def test_forward_is_the_other_librarys(name):
    backbone, group = NETS[name]
    with jax.enable_x64(True):
        graph, shapes = abstract(group)
        state = with_weights(shapes, backbone, foreign(name))
        run = quick_jit(lambda state, x: nnx.merge(graph, state)(x, train=False))
        features = run(state, images(SIZE))
        found = {f"stage{n}": stage for n, stage in enumerate(features.stages, 1)}
        found["pooled"] = features.pooled
    theirs = {key.split("/")[1] for key in STORED if key.startswith(f"{name}/")} - {"names"}
    assert set(found) == theirs
    for key, x in found.items():
        expected = STORED[f"{name}/{key}"]
        assert np.abs(expected).min() > 1e-6
        np.testing.assert_allclose(digest(x), expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def without(name):
    return lambda given: {key: x for key, x in given.items() if key != name}


@pytest.mark.parametrize(
    ("net", "change", "sentence"),
    [
        (
            "resnet18",
            lambda given: given | {"layer5.0.conv1.weight": np.zeros(1)},
            r"the weights' layer5.0.conv1.weight has no row .*take it out of the weights, or add",
        ),
        (
            "resnet18",
            lambda given: given | {"layer1.0.conv3.weight": np.zeros((64, 64, 1, 1))},
            r"conv3.weight belongs at stages/0/0/branch/2/conv/kernel, which this .* not have",
        ),
        (
            "resnet18",
            without("bn1.running_var"),
            r"no weight is for 1 array of this encoder, first of all stem/norm/var: build",
        ),
        (
            "resnet18",
            lambda given: given | {"conv1.weight": np.zeros((64, 3, 3, 3))},
            r"conv1.weight makes \(3, 3, 3, 64\) of stem/conv/kernel, which is \(7, 7, 3, 64\) in",
        ),
        (
            "vit_torchvision",
            lambda given: given | {"cls_token": given["class_token"]},
            r"class_token and cls_token are both for class_token: leave one out",
        ),
        (
            "vit_torchvision",
            lambda given: given | {"class_token": np.zeros(48)},
            r"class_token makes \(48,\) of class_token, which is \(1, 1, 48\) in this encoder",
        ),
    ],
)
def test_what_is_left_over_on_either_side_is_refused(net, change, sentence):
    backbone, group = NETS[net]
    with jax.enable_x64(True):
        _, shapes = abstract(group)
        with pytest.raises(UserError, match=sentence):
            with_weights(shapes, backbone, change(foreign(net)))


def test_an_unknown_backbone_is_refused():
    with pytest.raises(UserError, match=r"convn is unknown: choose one of resnet, vit"):
        unchecked(with_weights)(nnx.State({}), "convn", {})
