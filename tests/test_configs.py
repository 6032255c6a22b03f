"""Every shipped recipe parses its arguments and takes two steps."""

import json
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from configs.common import convn_group, view_group
from jaxssl.augment.augmentation import dino_multi_crop
from jaxssl.augment.policies import recipes
from jaxssl.errors import UserError
from jaxssl.methods import Spec
from jaxssl.pretrain import pretrain, resolve
from jaxssl.reporting import read_metrics
from jaxssl.training.state import Blueprint

HOUSE = pathlib.Path(__file__).parent.parent
RECIPES = sorted(
    path.relative_to(HOUSE).as_posix()
    for path in [*HOUSE.glob("configs/*/*.py"), HOUSE / "configs/quickstart.py"]
)


# A small form of each recipe on its own set, made of what scikit-learn ships; ResNets are replaced
# by the small net for the two steps, and checked as they are without being run.
SMALL = {
    "quickstart": "",
    "digit_on_image": "base=digits,digits=digits,digit_size=2,image_size=8,size=16",
    "moco_v2": "dataset=digits,queue=32,size=16",
    "multi_digits": "digits=digits,canvas=32,sizes=8,evaluation_size=8,size=16",
    "randbit": "dataset=digits,image_size=8,size=16",
    "saturation": "examples=64,bits=4,side=16",
    "simclr": "dataset=digits,size=16",
    "supervised": "dataset=digits,size=16",
}


def read(recipe: str, argument: str = ""):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values(["program", f"--config={recipe}{':' if argument else ''}{argument}"])
    return values.config


def test_all_recipes_are_found():
    assert {pathlib.Path(recipe).stem for recipe in RECIPES} == set(SMALL)


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
    """On the recipe's own set, with a narrower net and a smaller batch."""
    config = read(recipe, "batch=16,width=4," + SMALL[pathlib.Path(recipe).stem])
    with config.unlocked():
        config.data.train_examples = 0 if config.data.name == "saturation" else 200
        config.run.update(stop_step=2, log_every_steps=1, num_devices=2)
        config.evals.knn.update(every=0.1 if config.evals.knn.every else 0.0, protocol="dino")
        config.evals.knn.layer = "pooled"
        config.views.global_crops.update(jitter_p=0.0, grayscale_p=0.0)  # digits are grey
        config.normalize.update(mean=(), std=())
        if config.encoder.name != "convn":
            spec = Spec(640, 10, 1, (16, 16), 40, 40)
            groups = config.method, config.encoder, config.optimizer
            stages = Blueprint.from_config(*groups, spec)
            assert "stages" in str(stages.graph)
            config.encoder = convn_group(16, 4)
    state = pretrain(config, tmp_path / "run")
    assert int(state.step) == 2
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_a_folder_of_pictures_is_read_at_the_size_of_its_views():
    """Once, 224-pixel views were blown up from images of 32."""
    for size, image_size, fit in ((32, 32, "crop"), (96, 192, "letterbox")):
        config = read("configs/pretrain/simclr.py", f"dataset=folder,size={size}")
        assert (config.data.image_size, config.data.fit) == (image_size, fit)


def test_a_policy_brings_its_numbers_and_no_others():
    plain = read("configs/pretrain/simclr.py")
    assert set(plain.hyper) == {"learning_rate", "weight_decay", "temperature"}
    spatial = read("configs/pretrain/simclr.py", "policy=exclusive")
    assert set(spatial.hyper) - set(plain.hyper) == {"gap", "min_side"}
    plain.views.policy, spatial.views.policy = "overlap", "multi_view"
    with pytest.raises(UserError, match=r"hyper has no overlap, which --config.views.policy=overl"):
        resolve(plain)
    with pytest.raises(UserError, match=r"config.hyper.gap is read by nothing"):
        resolve(spatial)


def test_arguments_are_typed():
    config = read("configs/pretrain/simclr.py", "batch=32,epochs=7,width=16")
    assert (config.batch_size, config.epochs, config.encoder.width) == (32, 7.0, 16)
    for argument, sentence in (
        ("batch=1.5", "batch='1.5' is not int"),
        ("batsch=3", "'batsch' is unknown: this recipe takes dataset, batch"),
    ):
        with pytest.raises(UserError, match=sentence):
            _ = read("configs/pretrain/simclr.py", argument).batch_size


def test_one_number_stands_in_one_place():
    """Of two global and eight local crops, each number once; what differs in the second, alone."""
    views = view_group(dino_multi_crop(224))
    assert (views.global_crops.count, views.local_crops.count) == (2, 8)
    assert set(views.global_crops.second) == {"blur_p", "solarize_p"}
    assert recipes(views) == dino_multi_crop(224)
    views.local_crops.crop_scale = (0.1, 0.3)
    views.global_crops.flip_p = 0.25
    changed = recipes(views)
    assert [view.crop_scale[0] for view in changed] == [0.4] * 2 + [0.1] * 8
    assert [view.flip_p for view in changed[:2]] == [0.25, 0.25]
    views.global_crops.second.blur_pp = 1.0
    with pytest.raises(UserError, match=r"--config.views.global_crops.second.blur_pp"):
        recipes(views)
    views = view_group(dino_multi_crop(224))
    views.local_crops.crop_scale = (0.3, 0.1)
    with pytest.raises(UserError, match=r"--config.views.local_crops.crop_scale=\(0.3, 0.1\) must"):
        recipes(views)
