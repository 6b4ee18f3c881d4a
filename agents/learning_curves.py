"""The learning curves of reported runs: a panel per environment, validation payoff against glimpses of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from agents.algorithms import find_algorithm
from canvit_gym.benchmark.plots import COLOURS, DASHES, FAINT, MARKERS, report_style, svg_text
from canvit_gym.scenes.datasets import env_name
from canvit_gym.tasks import metric_named

COLUMNS = 4


def learning_curves(results: Sequence[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """A figure of the validations of all runs, as SVG: medians over seeds, and the range of the seeds.

    Args:
        results: environments, as agents.report writes them.
        titles: names of algorithms (directories of runs) in the order of the legend -> their titles.
    """
    columns = min(COLUMNS, len(results))
    lines = -(-len(results) // columns)
    with report_style():
        figure, panels = plt.subplots(lines, columns, figsize=(3.0 * columns, 2.5 * lines + 0.7), squeeze=False)
        for axes, result in zip(panels.flat, results, strict=False):
            _draw(axes, result, list(titles))
        for axes in panels.flat[len(results) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel("validation, %")
        handles = [Line2D([], [], **_mark(place), label=title) for place, title in enumerate(titles.values())]
        handles.append(Line2D([], [], color=FAINT, linewidth=1, linestyle=(0, (1, 1.5)), label="random viewpoints"))
        figure.legend(handles=handles, loc="lower center", ncols=min(6, len(handles)), fontsize=8.5)
        figure.tight_layout(rect=(0, 0.09 if lines > 1 else 0.2, 1, 1), w_pad=1.2, h_pad=1.5)
        return svg_text(figure)


def _draw(axes: Axes, result: dict[str, Any], order: list[str]) -> None:
    factor = metric_named(result["metric"]).display.factor
    for name, entry in result["algorithms"].items():
        glimpses, values = _validations(entry)
        mark = _mark(order.index(name))
        axes.plot(glimpses, factor * np.median(values, axis=0), **mark)
        if len(values) > 1:
            low, high = factor * values.min(axis=0), factor * values.max(axis=0)
            axes.fill_between(glimpses, low, high, color=mark["color"], alpha=0.12, linewidth=0)
    axes.axhline(factor * result["random_on_validation"], color=FAINT, linewidth=1, linestyle=(0, (1, 1.5)))
    axes.set_title(short_name(result), fontsize=9)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.set_xlabel("glimpses of training", fontsize=8)
    axes.tick_params(labelsize=7.5)


def short_name(result: dict[str, Any]) -> str:
    """The name of an environment in a column or above a panel: "Search"."""
    return env_name(result["env"]).removeprefix("Fashion")


def _validations(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """[V] glimpses and [S, V] payoffs at the validations that all S seeds have."""
    curves = [run["validation"] for run in entry["runs"]]
    common = sorted(set.intersection(*(set(curve["decisions"]) for curve in curves)))
    values = [[curve["values"][curve["decisions"].index(at)] for at in common] for curve in curves]
    hyper = find_algorithm(entry["algo"]).hyperparameters(**entry["hyperparameters"])
    return np.array([hyper.glimpses(at) for at in common]), np.array(values)


def _mark(place: int) -> dict[str, Any]:
    """The first place is drawn boldly."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place % len(DASHES)],
        "linewidth": 1.4 if place else 2.2,
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 3.5,
    }
