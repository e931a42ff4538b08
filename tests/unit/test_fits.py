"""Fits of forgetting curves: known curves give back their parameters, noise gives none; and what is left at fixed lags."""

import math

import numpy as np
import pytest
from reported import TASKS, record

import cl_toolkit as cl
from cl_toolkit.report import build
from cl_toolkit.report.estimate import Estimate
from cl_toolkit.report.fits import Fit, fits, fitted
from cl_toolkit.report.forgetting import Curve, curve, retained, retention
from cl_toolkit.report.lasting import half_life

LAGS = np.array([0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200])


def of(values, unit="seeds", floor=0.0, lags=LAGS):
    return Curve(lags, np.atleast_2d(values), unit, floor, {})


def power(a, b, c=0.0):
    return c + a * (1.0 + LAGS) ** -b


def exponential(a, tau, c=0.0):
    return c + a * np.exp(-LAGS / tau)


@pytest.mark.parametrize("c", [0.0, 0.1])
@pytest.mark.parametrize("b", [0.3, 1.2])
def test_a_power_law_gives_back_its_parameters(b, c):
    fit = fitted(of(power(0.6, b, c)))
    assert fit.form == "power law"
    assert fit.decided
    assert (fit.rate, fit.a, fit.c) == pytest.approx((b, 0.6, c), abs=1e-6)
    assert fit.half_life == pytest.approx(2 ** (1 / b) - 1, rel=1e-6)
    assert fit.r2 == pytest.approx(1, abs=1e-9)
    assert fit(LAGS) == pytest.approx(power(0.6, b, c), abs=1e-6)


@pytest.mark.parametrize("c", [0.0, 0.1])
@pytest.mark.parametrize("tau", [15.0, 120.0])
def test_an_exponential_gives_back_its_parameters(tau, c):
    fit = fitted(of(exponential(0.6, tau, c)))
    assert fit.form == "exponential"
    assert (fit.rate, fit.a, fit.c) == pytest.approx((tau, 0.6, c), rel=1e-6, abs=1e-6)
    assert fit.half_life == pytest.approx(tau * math.log(2), rel=1e-6)


def test_a_perplexity_rises_and_has_the_same_parameters():
    fit = fitted(of(40 - exponential(20.0, 30.0)), lower=True)
    assert (fit.a, fit.c, fit.rate) == pytest.approx((-20, 40, 30), rel=1e-6)
    assert fitted(of(40 - exponential(20.0, 30.0))) is None, "a score that rises is not forgotten"


def test_noise_a_level_line_and_few_points_have_no_fit():
    draw = np.random.default_rng(0)
    found = [fitted(of(0.7 + 0.05 * draw.standard_normal(len(LAGS)))) for _ in range(50)]
    assert found == [None] * 50
    assert fitted(of(np.full(len(LAGS), 0.7))) is None
    assert fitted(of(power(0.6, 0.5)[:7], lags=LAGS[:7])) is None
    assert fitted(of(power(0.6, 0.5)[:8], lags=LAGS[:8])).points == 8
    assert fitted(of(0.9 - 1e-4 * LAGS)) is None, "a straight line falls without a half-life"
    assert fitted(None) is None


def test_the_forms_that_cannot_be_told_apart_say_so():
    draw = np.random.default_rng(2)
    fit = fitted(of(exponential(0.6, 30.0, 0.1) + 0.05 * draw.standard_normal(len(LAGS))))
    other = fitted(of(exponential(0.6, 30.0, 0.1) + 0.002 * draw.standard_normal(len(LAGS))))
    assert fit.worse < other.worse
    assert other.decided


def test_the_interval_of_several_seeds_is_over_seeds():
    """Of curves that are one multiple of each other's height the half-life is the same: no width. Else by hand: leave one
    out, t with n - 1 degrees of freedom."""
    same = fitted(of([exponential(a, 30.0) for a in (0.5, 0.6, 0.7)]))
    assert (same.low, same.high) == pytest.approx((same.half_life, same.half_life), rel=1e-6)
    rows = np.array([exponential(0.6, tau) for tau in (20.0, 30.0, 45.0)])
    fit = fitted(of(rows))
    logs = [math.log(fitted(of(np.delete(rows, i, axis=0))).half_life) for i in range(3)]
    reach = 4.302653 * math.sqrt(2 / 3 * sum((h - np.mean(logs)) ** 2 for h in logs))
    assert (fit.low, fit.high) == pytest.approx(
        (fit.half_life * math.exp(-reach), fit.half_life * math.exp(reach)), rel=1e-4
    )
    assert (fit.n, fit.unit, fit.by_points) == (3, "seeds", False)


def test_the_interval_of_one_curve_is_that_of_curve_fit():
    from scipy.optimize import curve_fit

    y = exponential(0.6, 30.0, 0.1) + 0.02 * np.random.default_rng(0).standard_normal(len(LAGS))
    fit = fitted(of(y))

    def form(t, a, log_half, c):
        return c + a * 2 ** (-t / np.exp(log_half))

    best, covariance = curve_fit(form, LAGS, y, p0=(0.5, 3.0, 0.2))
    assert fit.half_life == pytest.approx(math.exp(best[1]), rel=1e-4)
    reach = 2.228139 * math.sqrt(covariance[1, 1])  # 13 points, 3 parameters
    assert math.log(fit.high / fit.low) / 2 == pytest.approx(reach, rel=1e-3)
    assert fit.by_points


def test_a_half_life_is_told_no_further_than_was_measured():
    known = {"form": "exponential", "a": 0.6, "c": 0.0, "rate": 1.0, "r2": 1.0, "worse": 9.0, "points": 9, "last": 50.0}
    assert half_life(Fit(**known, half_life=80.0, n=3, unit="seeds", low=60.0, high=99.0)) == "> 50"
    assert half_life(Fit(**known, half_life=20.0, n=3, unit="seeds", low=15.0, high=30.0)) == "20 (15 to 30)"
    assert (
        half_life(Fit(**known, half_life=20.0, n=1, unit="seeds", low=15.0, high=30.0))
        == "20 (15 to 30, by its points)"
    )


# records -------------------------------------------------------------------------------------------------------------


def falling(method="sequential", seed=0, tau=30.0, **changes):
    """A run whose first task falls from 0.9 to guessing, 0.1, as an exponential; it was learned in 10 steps."""
    found = [
        {"step": 10 + int(lag), "trained": "max" if lag else "sort", "scored": "sort", "lag": int(lag), "n": 50,
         "examples_seen": 40 + 4 * int(lag), "tokens_seen": 100 + 10 * int(lag), "value": 0.1 + 0.8 * math.exp(-lag / tau)}
        for lag in LAGS
    ]  # fmt: skip
    return record(method, seed, **{"probes": {"curves": found}, **changes})


def test_what_is_left_is_read_off_between_two_points():
    (ten, hundred) = retained(falling())
    assert (ten.task, ten.lag, ten.between) == ("sort", 10, True)
    after8, after12 = (0.1 + 0.8 * math.exp(-lag / 30) for lag in (8, 12))
    share = (math.log(11) - math.log(9)) / (math.log(13) - math.log(9))
    assert ten.score == pytest.approx(after8 + share * (after12 - after8))
    assert ten.share == pytest.approx((ten.score - 0.1) / 0.8)
    assert hundred.lag == 100
    at = next(retained(falling(), (50,)))
    assert (at.between, at.score) == (False, pytest.approx(0.1 + 0.8 * math.exp(-50 / 30)))
    assert list(retained(falling(), (1000,))) == []


def test_retention_has_the_reports_interval():
    runs = [falling(seed=i, tau=tau) for i, tau in enumerate((20.0, 30.0, 45.0))]
    estimate, tasks = retention(runs, 50)
    shares = [math.exp(-50 / tau) for tau in (20, 30, 45)]
    wanted = Estimate.of(shares, unit="seeds")
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert (estimate.n, estimate.unit, tasks) == (3, "seeds", 1)
    lower = {"units": ["perplexity"] * 3, "higher_is_better": [False] * 3}
    assert retention([falling(**lower)], 50) == (None, 0), "a perplexity has no zero"
    assert next(retained(falling(**lower))).score > 0


def test_each_task_has_its_own_direction():
    """Of a stream of accuracies and perplexities."""
    mixed = falling(higher_is_better=[False, True, True])
    for point in mixed["probes"]["curves"]:
        point["value"] = 40 - point["value"]
    assert fits({"sequential": [mixed]}, TASKS)["sequential", "sort"].c == pytest.approx(39.9, abs=1e-6)
    assert fits({"sequential": [falling(higher_is_better=[False, True, True])]}, TASKS) == {}
    assert all(math.isnan(left.share) for left in retained(mixed))


def test_the_mean_of_an_order_comes_first():
    runs = [falling(seed=0), falling(seed=1), falling(seed=2) | {"order": "other"}]
    found = curve(runs, "sort")
    assert (found.unit, found.values.shape) == ("orders", (2, len(LAGS)))
    assert found.floor == pytest.approx(0.1)
    assert found.times["tokens"].tolist() == (10.0 * LAGS).tolist()
    assert curve(runs, "shift") is None


def test_a_study_says_it_in_tables_files_and_on_the_page(tmp_path):
    runs = [falling(seed=i, tau=tau) for i, tau in enumerate((28.0, 30.0, 32.0))]
    text = build(runs, tmp_path).read_text()
    assert "How long it lasts" in text
    assert "exponential, tau = " in text
    study = cl.Study(tmp_path, runs)
    (fit,) = study.fits().to_dict("records")
    assert (fit["method"], fit["task"], fit["form"], fit["n"]) == ("sequential", "sort", "exponential", 3)
    assert fit["low"] < fit["half_life"] < fit["high"]
    assert len(study.retention()) == 6
    assert (tmp_path / "fits.csv").read_text().count("\n") == 2
    build([record(probes={})], tmp_path)
    assert not (tmp_path / "fits.csv").exists()
    assert "How long it lasts" not in (tmp_path / "report.html").read_text()
    assert set(TASKS) >= set(study.retention()["task"])


def test_curves_are_drawn_against_what_is_asked_for(tmp_path):
    plot = cl.Study(tmp_path, [falling(), falling(seed=1)]).plot
    (steps,), (tokens,) = plot.curves(), plot.curves(x="tokens", fits=True)
    assert "optimizer steps" in steps.caption
    assert "tokens trained on" in tokens.caption
    assert "fits" in tokens.caption
    assert steps.svg != plot.curves(fits=True)[0].svg, "the fit is drawn"
    with pytest.raises(cl.UserError, match=r"study.plot.curves: x: expected .*, got 'token'; did you mean 'tokens'"):
        plot.curves(x="token")
    old = falling()
    for point in old["probes"]["curves"]:
        del point["tokens_seen"]
    with pytest.raises(cl.UserError, match="no finished run has what curves and losses is drawn of"):
        cl.Study(tmp_path, [old]).plot.curves(x="tokens")
