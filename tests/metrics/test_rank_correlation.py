import itertools

import numpy as np
import pytest

from jaxssl.metrics.rank_correlation import kendall_interval, kendall_tau


def tau_b(x, y):
    """By counting pairs, with ties."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    concordant = sum(a * b > 0 for a, b in signs)
    discordant = sum(a * b < 0 for a, b in signs)
    tied_x = sum(a == 0 != b for a, b in signs)
    tied_y = sum(b == 0 != a for a, b in signs)
    decided = concordant + discordant
    return (concordant - discordant) / np.sqrt((decided + tied_x) * (decided + tied_y))


def test_tau_of_the_normalised_sum():
    rng = np.random.default_rng(0)
    align, uniform = rng.normal(size=24), 50 * rng.normal(size=24)
    performance = np.round(rng.random(24), 1)
    to_unit = lambda v: (v - v.min()) / (v.max() - v.min())  # noqa: E731
    expected = tau_b(to_unit(align) + to_unit(uniform), performance)
    assert kendall_tau(align, uniform, performance) == pytest.approx(expected, rel=1e-12)
    # Without the normalisation the larger loss would decide alone.
    assert kendall_tau(align, uniform, performance) != pytest.approx(
        tau_b(align + uniform, performance)
    )


def test_signs_and_degenerate_models():
    loss = np.arange(6.0)
    assert kendall_tau(loss, loss, -loss) == pytest.approx(-1)
    assert kendall_tau(loss, np.zeros(6), loss) == pytest.approx(1)
    assert np.isnan(kendall_tau(loss, loss, np.ones(6)))
    assert np.isnan(kendall_tau(loss, -loss, loss))
    with pytest.raises(ValueError, match="not finite"):
        kendall_tau(loss, loss, np.array([1, 2, 3, 4, 5, np.nan]))
    with pytest.raises(ValueError, match="1 models"):
        kendall_tau(loss[:1], loss[:1], loss[:1])


def test_the_interval_narrows_with_the_models_and_holds_the_value():
    rng = np.random.default_rng(1)
    widths = []
    for count in (20, 200):
        align, uniform = rng.normal(size=(2, count))
        performance = -align - uniform + rng.normal(size=count)
        found = kendall_interval(align, uniform, performance, seed=0, resamples=100)
        assert found.low < found.value < found.high < 0
        widths.append(found.half_width)
    assert widths[1] < widths[0] / 2
    again = kendall_interval(align, uniform, performance, seed=0, resamples=100)
    assert again == found
