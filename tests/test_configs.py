"""Every shipped recipe parses its arguments and takes two steps."""

import importlib
import json
import pathlib
import re

import pytest
from absl import flags
from ml_collections import config_flags

from configs.common import Preset, convn_group, view_group
from jaxssl.augment.augmentation import dino_multi_crop
from jaxssl.augment.policies import recipes
from jaxssl.errors import UserError
from jaxssl.methods import METHODS, Spec
from jaxssl.plan import resolve
from jaxssl.pretrain import pretrain
from jaxssl.reporting import read_metrics
from jaxssl.training.state import Blueprint

HOUSE = pathlib.Path(__file__).parent.parent
RECIPES = sorted(
    path.relative_to(HOUSE).as_posix()
    for path in [*HOUSE.glob("configs/*/*.py"), HOUSE / "configs/quickstart.py"]
)


# A small form of each recipe on its own set, made of what scikit-learn ships, where smaller views
# are not enough; ResNets are replaced by the small net for the two steps, and checked as they are
# without being run.
SMALL = {
    "deepcluster_v2": "size=16,centroids=20",
    "quickstart": "",
    "densecl": "size=16,queue=32",
    "digit_on_image": "base=digits,digits=digits,digit_size=2,image_size=8,size=16",
    "mae": "size=16,depth=2",
    "mnist": "dataset=digits,image_size=8,size=16",
    "moco_v2": "queue=32,size=16",
    "multi_digits": "digits=digits,canvas=32,sizes=8,evaluation_size=8,size=16",
    "randbit": "dataset=digits,image_size=8,size=16",
    "saturation": "examples=64,bits=4,side=16",
    "vae": "dataset=digits,image_size=8,size=16",
}


def presets(recipe: str) -> dict[str, Preset]:
    """Those of a recipe that has any."""
    module = importlib.import_module(recipe.removesuffix(".py").replace("/", "."))
    return vars(module).get("PRESETS", {})


PRESETS = [(recipe, preset) for recipe in RECIPES for preset in presets(recipe)]


def read(recipe: str, argument: str = ""):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values(["program", f"--config={recipe}{':' if argument else ''}{argument}"])
    return values.config


def test_every_method_has_a_recipe_of_its_name():
    stems = {pathlib.Path(recipe).stem for recipe in RECIPES}
    assert set(SMALL) <= stems
    assert set(METHODS) - stems == {"dense_align_uniform"}  # an argument of dense_contrastive's


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


def stem(recipe: str) -> str:
    return pathlib.Path(recipe).stem


# Recipes that differ in more than their method; the step of every method is taken in
# tests/training/test_devices.py, and the others' two steps are `slow`.
OF_THEIR_OWN = {"quickstart", "simclr", "digit_on_image", "multi_digits", "randbit", "saturation"}
TWO_STEPS = [
    pytest.param(recipe, marks=() if stem(recipe) in OF_THEIR_OWN else pytest.mark.slow)
    for recipe in RECIPES
]


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("recipe", TWO_STEPS)
def test_recipe_takes_two_steps(recipe, tmp_path):
    """On the recipe's own set, with a narrower net and a smaller batch."""
    small = SMALL.get(stem(recipe), "size=16")
    config = read(recipe, f"batch=16,width=4,{small}")
    with config.unlocked():
        config.data.name = "digits" if presets(recipe) else config.data.name
        config.data.train_examples = 0 if config.data.name == "saturation" else 200
        config.run.update(stop_step=2, log_every_steps=1, num_devices=2)
        config.evals.knn.update(every=0.1 if config.evals.knn.every else 0.0, protocol="dino")
        config.evals.knn.layer = "pooled"
        config.views.global_crops.update(jitter_p=0.0, grayscale_p=0.0)  # digits are grey
        config.normalize.update(mean=(), std=())
        if config.encoder.name not in ("convn", "vit"):
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


@pytest.mark.parametrize(("recipe", "preset"), PRESETS)
def test_a_preset_is_a_run(recipe, preset):
    """Every number has a reader and a range, and every group of the optimizer its parameters."""
    chosen = presets(recipe)[preset]
    for dataset in chosen.datasets:
        config = read(recipe, f"preset={preset},dataset={dataset}")
        assert config.data.name == dataset
        assert config.data.validation_fraction == chosen.held_out
        assert config.evals.knn.split == ("validation" if chosen.held_out else "test")
    resolve(config)
    with config.unlocked():
        if "resnet" in config.encoder.name:
            config.encoder = convn_group(16, 4)
    method = METHODS[config.method.name]
    assert method.VIEWS in (None, len(recipes(config.views)))
    spec = Spec(50_000, 10, 3, (16, 16), 40, 40)
    Blueprint.from_config(config.method, config.encoder, config.optimizer, spec)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if presets(recipe)])
def test_presets_say_whose_they_are(recipe):
    """Each in the docstring; a foreign one says what still differs and what was published.

    It has its source's own command, or says that there is none.
    """
    docstring = (HOUSE / recipe).read_text().split('"""')[1]
    parts = dict(re.findall(r"^(\w+) \((.*?)(?=^\w|\Z)", docstring, re.MULTILINE | re.DOTALL))
    for name, preset in presets(recipe).items():
        assert name in parts
        if not preset.held_out:
            for word in ("Published", "Differs"):
                assert word in parts[name], (name, word)
            command = r"^  python3? \S|\.sh\b|\.ipynb\b|[Nn]o code\s+is\s+public"
            assert re.search(command, parts[name], re.MULTILINE), name
    assert next(iter(presets(recipe))) == "jaxssl"


def test_a_data_set_without_a_source_is_refused():
    recipe = "configs/pretrain/simclr.py"
    for argument, sentence in (
        (
            "dataset=stl10",
            r"dataset='stl10' has no source in preset=jaxssl.*start from dataset=cif",
        ),
        ("dataset=cifar100", r"--config.data.name=cifar100, or preset=solo\."),
        ("preset=mine", r"preset='mine' is unknown: this recipe has jaxssl, lightly, solo, paper"),
    ):
        with pytest.raises(UserError, match=sentence):
            _ = read(recipe, argument).batch_size
    for name in ("vae", "randbit", "mnist"):
        with pytest.raises(UserError, match=r"'cifar10' has no source .* --config.data.name=cifar"):
            _ = read(f"configs/pretrain/{name}.py", "dataset=cifar10").batch_size


def test_the_demos_horizon_is_its_own():
    config = read("configs/pretrain/moco_v2.py", "preset=moco_demo")
    assert int(50_000 * config.epochs // config.batch_size) == 19_400


def test_a_folder_of_pictures_is_read_at_the_size_of_its_views():
    """Once, 224-pixel views were blown up from images of 32."""
    for size, image_size, fit in ((32, 32, "crop"), (96, 192, "letterbox")):
        config = read("configs/pretrain/simclr.py", f"size={size}")
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
        ("batsch=3", "'batsch' is unknown: this recipe takes preset, dataset, batch"),
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


def test_what_the_authors_code_says_and_the_paper_does_not():
    """Initialisation, filters, steps of the schedule and neighbours, which are easily forgotten."""
    byol = read("configs/pretrain/byol.py", "preset=paper").encoder
    assert (byol.zero_init_residual, byol.kernel_init) == (True, "fan_in_truncated_normal")
    for recipe in ("swav", "deepcluster_v2"):
        config = read(f"configs/pretrain/{recipe}.py", "preset=paper")
        assert {view.crop_filter for view in recipes(config.views)} == {"bilinear"}
        assert config.normalize.std == (0.228, 0.224, 0.225)
    for preset in ("vit", "paper"):
        assert read("configs/pretrain/dino.py", f"preset={preset}").evals.knn.protocol == "dino"
    for recipe, preset in (("densecl", "paper"), ("dense_contrastive", "paper_coco")):
        config = read(f"configs/pretrain/{recipe}.py", f"preset={preset}")
        assert config.hyper.learning_rate.granularity == "epoch"


def test_lejepas_numbers_follow_the_number_of_views():
    config = read("configs/pretrain/generalized_contrastive.py", "preset=lejepa")
    for count in (4, 8):
        config.views.global_crops.count = count
        hyper = resolve(config).hyper
        scale = 0.98 * (count - 1) / count
        assert (hyper.weight, hyper.scale) == pytest.approx((0.02 / scale, scale))
    config.hyper.weight = 0.5
    assert resolve(config).hyper.weight == 0.5
