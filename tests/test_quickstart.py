"""The quickstart's claim: what it learns shows, in every column of the probe and for every seed.

The margins are far above the spread over seeds; the README's table has what was measured.
"""

import numpy as np
import pytest

from configs.quickstart import get_config
from jaxssl.data.pipeline import drawn_anew
from jaxssl.data.sources import load
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.linear_probe import linear_probe
from jaxssl.plan import resolve
from jaxssl.pretrain import pretrain
from jaxssl.run_directory import config_differences

# Hundreds of steps take longer than their compilation.
pytestmark = pytest.mark.usefixtures("thorough")
SEEDS = (0, 1, 2)
# Points ahead of the better of the untrained encoder and of raw pixels.
MARGINS = {"lbfgs": 0.45, "lbfgs_few": 0.30, "knn": 0.04, "sgd": 0.45}


def ahead(workdir, arguments: str, sgd_epochs: int) -> dict[str, dict[str, float]]:
    """How far the trained encoder is ahead of each baseline: top-1 on the test split."""
    config = get_config(arguments)
    with config.unlocked():
        config.run.num_devices = 1
        config.evals.knn.every = 0.0
    pretrain(config, workdir)
    settings = probe.default_config()
    settings.sgd.epochs = sgd_epochs
    results = linear_probe(workdir, None, settings, baselines=True)[0]["results"]
    top1 = {
        name: {fit: found if fit == "knn" else found["top1"] for fit, found in fits.items()}
        for name, fits in results.items()
    }
    trained = top1.pop("trained")
    print(trained, top1)
    return {
        name: {fit: trained[fit] - other for fit, other in fits.items()}
        for name, fits in top1.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_full_claim(seed, tmp_path):
    gains = ahead(tmp_path / "run", f"seed={seed}", probe.default_config().sgd.epochs)
    assert set(gains) == {"untrained", "pixels"}
    for name, fits in gains.items():
        assert set(fits) == set(MARGINS)
        for fit, margin in MARGINS.items():
            assert fits[fit] >= margin, (name, fit)


def test_a_canvas_of_eight_pixels_holds_the_digits_as_they_are():
    plain, placed = (load(get_config(text).data, "pretrain") for text in ("canvas=8", "canvas=9"))
    rows, start = np.arange(200), np.zeros(200, np.int64)
    for source, fixed, side in ((plain, True, 8), (placed, False, 9)):
        first, second = (source.gather(rows, start + epoch) for epoch in (0, 1))
        assert first["image"].shape == (200, side, side, 1)
        assert (first["image"] == second["image"]).all() == fixed
        assert set(first["targets"]) >= {"label"}
        # What is composed anew each epoch holds no image twice where two epochs meet in a batch.
        assert drawn_anew(source) != fixed


def test_the_yardstick_with_labels_differs_in_the_method_alone():
    ours, labels = (get_config(f"method={name}") for name in ("simclr", "supervised"))
    differing = config_differences(ours, labels)
    assert {line.partition(":")[0].partition(".")[0] for line in differing} == {"hyper", "method"}
    assert resolve(labels).method.to_dict() == {"name": "supervised"}
    with pytest.raises(UserError, match="method='byol' is unknown: this recipe has simclr, super"):
        get_config("method=byol")
