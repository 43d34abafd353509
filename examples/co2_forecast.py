"""Forecasts the CO2 in the air above Mauna Loa a year ahead, from weekly measurements of which 59 are missing.

An `LSTMRegressor` of fastlstm.sklearn reads two years, whose missing weeks it skips, and says the 52 weeks after them.
It learns from 1958 to 1990 and is tested on the years after. The program prints its error beside that of a forecast
without learning, writes a plot, and exits with 1 if the net is no better.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from statsmodels.datasets import co2

from fastlstm.sklearn import LSTMRegressor

WEEKS, AHEAD, TESTED_FROM, PPM = 104, 52, 1991, 3.0  # what it reads, what it says, and the spread of a year


class Windows(NamedTuple):
    """Every week from which a forecast can be made, and all measurements by week."""

    series: np.ndarray  # [weeks], NaN where nothing was measured
    years: np.ndarray  # [weeks], as a number with a fraction
    origin: np.ndarray  # [N], the week of each forecast's first value
    x: np.ndarray  # [N,104,3]: the difference to the last value in units of PPM, and the season as sine and cosine
    last: np.ndarray  # [N], the last value that was measured before the origin
    truth: np.ndarray  # [N,52]


def load():
    frame = co2.load_pandas().data
    series, dates = frame["co2"].to_numpy(), frame.index
    season = 2 * np.pi * dates.day_of_year.to_numpy() / 365.25
    features = np.stack([series, np.sin(season), np.cos(season)], axis=1)
    origin = np.arange(WEEKS, len(series) - AHEAD + 1)
    x = np.stack([features[week - WEEKS : week] for week in origin])
    last = np.array([values[~np.isnan(values)][-1] for values in x[:, :, 0]])
    x[:, :, 0] = (x[:, :, 0] - last[:, None]) / PPM
    truth = np.stack([series[week : week + AHEAD] for week in origin])
    years = dates.year.to_numpy() + (dates.day_of_year.to_numpy() - 1) / 365.25
    return Windows(series, years, origin, x.astype(np.float32), last, truth)


def without_learning(windows):
    """The year before, plus its growth over the one before that."""
    weeks = windows.origin[:, None] + np.arange(-WEEKS, 0)
    before, year = np.split(windows.series[weeks], 2, axis=1)
    return year + (np.nanmean(year, axis=1) - np.nanmean(before, axis=1))[:, None]


def error(forecast, truth, axis=None):
    return np.sqrt(np.nanmean((forecast - truth) ** 2, axis=axis))


def main(epochs=20, folder=Path(__file__).parent):
    windows = load()
    is_test = windows.years[windows.origin] >= TESTED_FROM
    is_training = (windows.years[windows.origin + AHEAD - 1] < TESTED_FROM) & ~np.isnan(windows.truth).any(axis=1)
    missing = int(np.isnan(windows.series).sum())
    print(f"{len(windows.series)} weeks, {missing} of them missing; {is_training.sum()} windows to learn from")

    start = time.perf_counter()
    net = LSTMRegressor(hidden_size=48, epochs=epochs, missing="skip", random_state=0, verbose=True)
    net.fit(windows.x[is_training], (windows.truth - windows.last[:, None])[is_training].astype(np.float32) / PPM)
    seconds = time.perf_counter() - start

    tested = Windows(windows.series, windows.years, *(part[is_test] for part in windows[2:]))
    forecast = net.predict(tested.x) * PPM + tested.last[:, None]
    plain = without_learning(tested)
    ours, theirs = error(forecast, tested.truth), error(plain, tested.truth)
    print(f"root mean square error over {len(forecast)} forecasts of {AHEAD} weeks, from {TESTED_FROM} on, in ppm:")
    print(f"  LSTM, {epochs} epochs in {seconds:.1f} s    {ours:.2f}")
    print(f"  last year plus its growth    {theirs:.2f}")
    path = Path(folder) / "co2_forecast.png"
    plot(path, tested, forecast, plain, seconds)
    print(f"plot: {path}")
    return 0 if ours < theirs else 1


# The plot. Nothing below is about LSTMs.

PAPER, INK, FAINT, BLUE, ORANGE = "#fbfaf7", "#22303c", "#b4bac0", "#2a6f97", "#e4572e"
HEADING = {"loc": "left", "weight": "bold", "fontsize": 10.8, "pad": 10}


def plot(path, tested, forecast, plain, seconds):
    """The forecasts of each January over what came, the error by weeks ahead, and where weeks are missing."""
    style = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK}
    style |= {"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT, "figure.facecolor": PAPER}
    style |= {"axes.facecolor": PAPER, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(13, 8))
        grid = figure.add_gridspec(2, 2, height_ratios=[1.35, 1], hspace=0.4, wspace=0.16)
        grid.update(left=0.06, right=0.975, top=0.84, bottom=0.075)
        figure.text(0.06, 0.945, "An LSTM forecasts a year of CO₂", fontsize=20, weight="bold")
        summary = (
            f"Error {error(forecast, tested.truth):.2f} ppm, against {error(plain, tested.truth):.2f} of last year"
        )
        figure.text(0.06, 0.908, f"{summary} plus its growth. Trained on 1958–1990 in {seconds:.0f} s.", fontsize=11)
        plot_forecasts(figure.add_subplot(grid[0, :]), tested, forecast)
        plot_errors(figure.add_subplot(grid[1, 0]), tested, forecast, plain)
        plot_missing(figure.add_subplot(grid[1, 1]), tested)
        figure.savefig(path, dpi=140)


def plot_forecasts(axes, tested, forecast):
    shown = tested.years >= TESTED_FROM - 1
    axes.plot(tested.years[shown], tested.series[shown], ".", color=INK, markersize=3, label="measured")
    first_weeks = np.searchsorted(tested.years[tested.origin], np.arange(TESTED_FROM, 2001))
    for n in first_weeks:
        weeks = slice(tested.origin[n], tested.origin[n] + AHEAD)
        label = "forecast, made on the dot" if n == first_weeks[0] else None
        axes.plot(tested.years[weeks], forecast[n], color=ORANGE, linewidth=2.2, alpha=0.85, label=label)
        axes.plot(tested.years[weeks.start], forecast[n, 0], "o", color=ORANGE, markersize=5)
    axes.set(ylabel="ppm", xlim=(TESTED_FROM - 1, 2002))
    axes.set_xticks(range(TESTED_FROM - 1, 2003))
    axes.set_title("What it says each January of the 52 weeks to come, in years it did not learn from", **HEADING)
    axes.grid(axis="y", color=FAINT, alpha=0.35, linewidth=0.6)
    axes.legend(frameon=False, fontsize=10, loc="upper left")


def plot_errors(axes, tested, forecast, plain):
    weeks = np.arange(1, AHEAD + 1)
    axes.plot(
        weeks, error(plain, tested.truth, axis=0), "--", color=INK, linewidth=1.3, label="last year plus its growth"
    )
    axes.plot(weeks, error(forecast, tested.truth, axis=0), color=BLUE, linewidth=3, label="LSTM")
    axes.set(xlabel="weeks ahead", ylabel="ppm", xlim=(1, AHEAD), ylim=(0, None))
    axes.set_title("Root mean square error, by how far ahead it looks", **HEADING)
    axes.legend(frameon=False, fontsize=10, loc="lower right")


def plot_missing(axes, tested):
    early = tested.years < 1968
    years, series = tested.years[early], tested.series[early]
    axes.plot(years, series, color=BLUE, linewidth=1.6)
    for week in np.flatnonzero(np.isnan(series)):
        axes.axvspan(years[week] - 0.5 / 52, years[week] + 0.5 / 52, color=ORANGE, alpha=0.35, linewidth=0)
    axes.set(ylabel="ppm", xlim=(years[0], 1968))
    axes.set_title("The first ten years: weeks without a value in orange", **HEADING)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the plot goes")
    sys.exit(main(**vars(parser.parse_args())))
