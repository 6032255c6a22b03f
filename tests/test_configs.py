"""Every shipped recipe parses its arguments and takes two steps."""

import json
import pathlib

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from jaxssl.data.examples import array_source
from jaxssl.errors import UserError
from jaxssl.pretrain import pretrain
from jaxssl.randomness import Split
from jaxssl.reporting import read_metrics

HOUSE = pathlib.Path(__file__).parent.parent
RECIPES = sorted(
    path.relative_to(HOUSE).as_posix()
    for path in [*HOUSE.glob("configs/*/*.py"), HOUSE / "configs/quickstart.py"]
)


SMALLER = {
    "moco_v2": ",queue=32",
    "multi_digits": ",size=32",
    "digit_on_image": ",image_size=32,size=32,encoder=resnet18",
    "randbit": ",image_size=16,size=16",
}


def read(recipe: str, argument: str = ""):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values(["program", f"--config={recipe}{':' if argument else ''}{argument}"])
    return values.config


def test_all_recipes_are_found():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_what_it_is(recipe):
    """Paper, command, cost, expected number, arguments."""
    text = (HOUSE / recipe).read_text()
    docstring = text.split('"""')[1]
    command = "make quickstart" if "quickstart" in recipe else f"--config {recipe}"
    for word in ("arXiv", command, "Cost", "xpected", "Arguments"):
        assert word in docstring, word
    config = read(recipe)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.no_such_key = 1
    json.dumps(config.to_dict())


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_takes_two_steps(recipe, tmp_path):
    """On noise of the recipe's own shape, with a narrower net and a smaller batch."""
    config = read(recipe, "batch=16,width=4" + SMALLER.get(pathlib.Path(recipe).stem, ""))
    draw = np.random.default_rng(0)
    gray = ("quickstart", "multi_digits", "randbit")
    channels = 1 if pathlib.Path(recipe).stem in gray else 3

    side = config.data.image_size
    images = draw.integers(0, 256, (64, side, side, channels), np.uint8)
    labels = np.arange(64, dtype=np.int32) % 10
    noise = array_source("noise", Split.TRAIN, images, {"label": labels}, num_classes=10)
    with config.unlocked():
        config.run.stop_step = 2
        config.run.log_every_steps = 1
        config.run.num_devices = 2
        config.evals.knn.every = 0.0
    state = pretrain(config, tmp_path / "run", {"train": noise})
    assert int(state.step) == 2
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_arguments_are_typed():
    config = read("configs/pretrain/simclr.py", "batch=32,epochs=7,width=16")
    assert (config.batch_size, config.epochs, config.encoder.width) == (32, 7.0, 16)
    for argument, sentence in (
        ("batch=1.5", "batch='1.5' is not int"),
        ("batsch=3", "'batsch' is unknown: this recipe takes dataset, batch"),
    ):
        with pytest.raises(UserError, match=sentence):
            _ = read("configs/pretrain/simclr.py", argument).batch_size


def test_one_view_can_be_changed_alone():
    for recipe in RECIPES:
        config = read(recipe)
        config.views.view2.flip_p = 0.25
        assert config.views.view1.flip_p != 0.25
