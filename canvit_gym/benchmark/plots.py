"""Figures of a benchmark's report as SVG, in one style that is readable without colour vision.

Each policy keeps its colour, dash and marker in every figure. Labels come from users and may contain anything: they are
drawn literally, in one line and without math. Viewpoints are (row, col, scale) in scene coordinates.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from canvit_gym.benchmark.records import SCALE_DIGITS, Benchmark, Entry
from canvit_gym.benchmark.words import scale_text
from canvit_gym.escaping import visible

INK, FAINT, RULE, PAGE = "#1b1f24", "#69707a", "#d5d9de", "#ffffff"
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}

COLOURS = (
    "#0077bb", "#ee7733", "#009988", "#ee3377", "#8a6fc9", "#33a4dd", "#cc3311", "#a5892a", "#5b8c2a", "#b0578d",
    "#4d6fa5", "#c28e5c", "#d6b21a", "#8c5233", "#5fc2a5", "#7d3fbf", "#f09bb0", "#9cc53b",
)  # fmt: skip
"""Usually more than a benchmark has policies. The first ones are distinguishable with any colour vision (after Paul
Tol's vibrant scheme); dashes, markers and direct labels distinguish the rest."""
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.6)), (0, (1.4, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")

STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.titlecolor": INK,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "figure.facecolor": PAGE, "axes.facecolor": PAGE, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "canvit_gym", "text.parse_math": False,
}  # fmt: skip

TITLE_CHARS = 25
"""Characters that fit above a panel of differences."""
DENSITY_BINS = 24
COLUMNS = 6
"""The largest number of columns of glimpses; with larger budgets later glimpses share one."""


@dataclass(frozen=True)
class Mark:
    """How a policy is drawn."""

    colour: str
    dash: Any
    marker: str
    width: float


def marks(entries: Sequence[Entry], *, reference: str) -> dict[str, Mark]:
    """Neutral for the reference and for ceilings, bold for learned policies."""
    result: dict[str, Mark] = {}
    place = 0
    for entry in sorted(entries, key=lambda e: not e.learned):  # learned policies get the first colours
        if entry.label == reference:
            result[entry.label] = Mark(INK, "solid", "o", 2.0)
        elif entry.uses_labels:
            result[entry.label] = Mark(FAINT, (0, (1.2, 1.2)), "*", 1.6)
        else:
            colour, turn = COLOURS[place % len(COLOURS)], place // len(COLOURS)
            dash = "solid" if entry.learned else DASHES[(turn + place % 2) % len(DASHES)]
            result[entry.label] = Mark(
                colour, dash, MARKERS[(place + turn) % len(MARKERS)], 2.2 if entry.learned else 1.5
            )
            place += 1
    return result


@contextmanager
def report_style() -> Iterator[None]:
    """What is drawn within looks as every figure of a report does."""
    with plt.rc_context(STYLE):
        yield


def svg_text(figure: Figure) -> str:
    """The figure as text, closed."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata=NO_METADATA)
    plt.close(figure)
    return buffer.getvalue()


def _spread(places: NDArray[np.float64], *, gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move places apart by at least `gap`, in order and as little as possible, within the limits if they fit."""
    order = np.argsort(places, kind="stable")
    moved = places[order].astype(np.float64)
    for _ in range(200):
        overlap = gap - np.diff(moved)
        if (overlap <= 1e-9).all():
            break
        for i in np.flatnonzero(overlap > 0):
            shift = (gap - (moved[i + 1] - moved[i])) / 2
            if shift > 0:
                moved[i] -= shift
                moved[i + 1] += shift
        moved += max(low - moved[0], 0)
        moved -= max(moved[-1] - high, 0) if moved[-1] - moved[0] <= high - low else 0
    result = np.empty_like(moved)
    result[order] = moved
    return result


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float]], drawn: dict[str, Mark], *, at: float) -> None:
    """Direct labels to the right of x = `at`, spread so that they do not overlap, connected to their curves."""
    low, high = axes.get_ylim()
    height_pt = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = (high - low) * 11.5 / height_pt
    labels = list(ends)
    places = _spread(np.array([ends[label][1] for label in labels]), gap=gap, low=low, high=high)
    for label, y in zip(labels, places, strict=True):
        axes.annotate(
            visible(label),
            xy=ends[label],
            xytext=(at, float(y)),
            textcoords=axes.get_yaxis_transform(),
            color=drawn[label].colour,
            fontsize=8.5,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": drawn[label].colour,
                "lw": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _limits(curves: Sequence[Any]) -> tuple[float, float]:
    low, high = min(np.min(c) for c in curves), max(np.max(c) for c in curves)
    margin = max(0.06 * (high - low), 1e-3)
    return low - margin, high + margin


def _signed(value: float, _: int) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


def _every_glimpse(axes: Axes, budget: int, *, ticks: int = 11) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(budget, ticks), min_n_ticks=1))
    axes.set_xlim(1 - 0.03 * budget, budget + 0.03 * budget)


def curves_figure(
    curves: dict[str, dict[str, Any]],
    drawn: dict[str, Mark],
    *,
    y_label: str,
    title: str,
    gflops: dict[str, list[float]] | None = None,
) -> str:
    """Estimates {"value": [T], "interval": [[T], [T]]} by label, in %, against glimpses or cumulative GFLOPs."""
    with report_style():
        figure, axes = plt.subplots(figsize=(7.2, 4.3))
        budget = len(next(iter(curves.values()))["value"])
        ends: dict[str, tuple[float, float]] = {}
        for label, curve in curves.items():
            mark = drawn[label]
            x = np.arange(1, budget + 1) if gflops is None else np.asarray(gflops[label])
            value, (low, high) = 100 * np.array(curve["value"]), 100 * np.array(curve["interval"])
            axes.fill_between(x, low, high, color=mark.colour, alpha=0.09, linewidth=0)
            every = max(1, budget // 10)
            axes.plot(
                x, value, color=mark.colour, linestyle=mark.dash, linewidth=mark.width, marker=mark.marker,
                markersize=4.5, markevery=every,
            )  # fmt: skip
            ends[label] = (float(x[-1]), float(value[-1]))
        axes.set_ylim(*_limits([100 * np.array(curve["interval"]) for curve in curves.values()]))
        axes.set_ylabel(visible(y_label))
        axes.set_title(visible(title), pad=10)
        if gflops is None:
            _every_glimpse(axes, budget)
            axes.set_xlabel("glimpses taken")
        else:
            axes.set_xscale("log")
            axes.set_xlabel("cumulative GFLOPs per scene (log scale), of backbone and policy")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        _label_ends(axes, ends, drawn, at=1.035)
        return svg_text(figure)


def panel_title(label: str) -> str:
    """A label in lines that fit above a panel; brackets begin a new line."""
    name, bracket, rest = visible(label).partition("(")
    return "\n".join(wrap(name, TITLE_CHARS) + wrap(bracket + rest, TITLE_CHARS))


def differences_figure(curves: dict[str, dict[str, Any]], drawn: dict[str, Mark], *, y_label: str, zero: str) -> str:
    """A panel per policy: its difference to `zero` in points against glimpses, with the other policies in grey."""
    with report_style():
        columns = min(4, len(curves))
        lines = -(-len(curves) // columns)
        figure, panels = plt.subplots(
            lines,
            columns,
            figsize=(max(2.3 * columns, 4.6), 1.75 * lines + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        budget = len(next(iter(curves.values()))["value"])
        x = np.arange(1, budget + 1)
        # One polyline, broken where a curve ends.
        behind = (
            np.concatenate([np.append(x, np.nan) for _ in curves]),
            np.concatenate([np.append(100 * np.array(curve["value"]), np.nan) for curve in curves.values()]),
        )
        for axes, (label, curve) in zip(panels.flat, curves.items(), strict=False):
            axes.plot(*behind, color=RULE, linewidth=0.9)
            axes.axhline(0, color=INK, linewidth=1)
            low, high = 100 * np.array(curve["interval"])
            axes.fill_between(x, low, high, color=drawn[label].colour, alpha=0.25, linewidth=0)
            axes.plot(x, 100 * np.array(curve["value"]), color=drawn[label].colour, linewidth=2)
            axes.set_title(panel_title(label), fontsize=8.2)
            axes.yaxis.set_major_formatter(FuncFormatter(_signed))
            _every_glimpse(axes, budget, ticks=5)
            axes.grid(False, axis="x")
        panels[0, 0].annotate(
            visible(zero), (0.98, 0), xycoords=panels[0, 0].get_yaxis_transform(), xytext=(0, -3),
            textcoords="offset points", fontsize=7.5, color=INK, ha="right", va="top",
        )  # fmt: skip
        for axes in panels.flat[len(curves) :]:
            axes.set_visible(False)
        for column in range(columns):  # if the last row is shorter, the row above has the axis
            lowest = max(line for line in range(lines) if line * columns + column < len(curves))
            panels[lowest, column].xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("glimpses taken", fontsize=9)
        figure.supylabel(visible(y_label), fontsize=9)
        figure.tight_layout(w_pad=0.8, h_pad=0.8)
        return svg_text(figure)


def intervals_figure(
    panels: Sequence[tuple[str, dict[str, dict[str, Any] | None], float]], drawn: dict[str, Mark], labels: Sequence[str]
) -> str:
    """Scalar estimates as dots with 95% bars, a row per label: panels of (title, estimates by label, line at)."""
    with report_style():
        height = 0.27 * len(labels) + 0.75
        figure, columns = plt.subplots(1, len(panels), figsize=(8.6, height), sharey=True, squeeze=False)
        for axes, (title, estimates, line) in zip(columns[0], panels, strict=True):
            axes.axvline(line, color=INK, linewidth=1)
            for place, label in enumerate(labels):
                entry = estimates.get(label)
                if entry is None:
                    continue
                low, high = entry["interval"]
                clear = low > line or high < line
                axes.plot([low, high], [place, place], color=drawn[label].colour, linewidth=2.2, solid_capstyle="butt")
                axes.plot(
                    entry["value"], place, marker="o", markersize=6, color=drawn[label].colour,
                    markerfacecolor=drawn[label].colour if clear else PAGE, linestyle="none",
                )  # fmt: skip
            axes.set_title(title, fontsize=8.8)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
            if line == 0:
                axes.xaxis.set_major_formatter(FuncFormatter(_signed))
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        columns[0][0].set_yticks(range(len(labels)), labels=[visible(label) for label in labels])
        columns[0][0].set_ylim(len(labels) - 0.4, -0.6)
        figure.tight_layout(w_pad=1.2)
        return svg_text(figure)


def glimpse_groups(budget: int) -> list[tuple[int, int]]:
    """[first, last] glimpses (from 1) that share a column, single ones first; glimpse 1 never shares one."""
    later = list(range(2, budget + 1))
    if len(later) <= COLUMNS:
        return [(t, t) for t in later]
    edges = np.unique(np.round(np.geomspace(2, budget + 1, COLUMNS + 1)).astype(int))
    return [(int(a), int(b) - 1) for a, b in pairwise(edges)]


def fixation_density(viewpoints: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n, 3] -> [bins, bins]: the share of glimpses centered in each bin (row, col), smoothed over its neighbours."""
    edges = np.linspace(-1, 1, DENSITY_BINS + 1)
    counts, _, _ = np.histogram2d(viewpoints[:, 0], viewpoints[:, 1], bins=(edges, edges))
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / 0.9) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel, mode="same")
    return counts / max(len(viewpoints), 1)


def density_figure(benchmark: Benchmark) -> str:
    """A row of maps per policy, a map per glimpse after the first, each scaled to its own maximum."""
    groups = glimpse_groups(benchmark.budget)
    gap = 3
    pitch = DENSITY_BINS + gap
    entries = benchmark.entries
    mosaic = np.full((len(entries) * pitch - gap, len(groups) * pitch - gap), np.nan)
    for line, entry in enumerate(entries):
        viewpoints = entry.viewpoints
        for column, (first, last) in enumerate(groups):
            density = np.sqrt(fixation_density(viewpoints[:, first - 1 : last].reshape(-1, 3)))
            top, left = line * pitch, column * pitch
            mosaic[top : top + DENSITY_BINS, left : left + DENSITY_BINS] = density / max(density.max(), 1e-12)
    with report_style():
        unit = 0.028
        figure = plt.figure(figsize=(mosaic.shape[1] * unit, mosaic.shape[0] * unit))
        axes = figure.add_axes((0, 0, 1, 1))
        colours = plt.get_cmap("cividis").with_extremes(bad=(1, 1, 1, 0))
        axes.imshow(mosaic, cmap=colours, vmin=0, vmax=1, interpolation="none")
        _mosaic_labels(axes, [entry.label for entry in entries], groups, pitch)
        return svg_text(figure)


def _mosaic_labels(axes: Axes, lines: Sequence[str], groups: Sequence[tuple[int, int]], pitch: int) -> None:
    half = DENSITY_BINS / 2
    axes.set_xticks(
        [column * pitch + half - 0.5 for column in range(len(groups))],
        labels=[f"{a}" if a == b else f"{a}–{b}" for a, b in groups],
    )
    axes.xaxis.tick_top()
    axes.set_xlabel("glimpse", labelpad=8)
    axes.xaxis.set_label_position("top")
    axes.set_yticks([line * pitch + half - 0.5 for line in range(len(lines))], labels=[visible(line) for line in lines])
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


LABELLED_SHARE = 0.06
"""The smallest share whose part of the bar has room for its scale."""
ON_BRIGHT, ON_DARK, LUMINANCE = "#101010", "#fdfdfd", (0.2126, 0.7152, 0.0722)
"""Colours of text on a bar, and the brightness of red, green and blue."""
SCALE_COLOURS = LinearSegmentedColormap.from_list("scales", ["#d8c27a", "#6fa98f", "#2f7f9b", "#33558b", "#2b2a5a"])


def scale_shares(viewpoints: NDArray[np.float32], halvings: int) -> NDArray[np.float64]:
    """[n, 3] -> [halvings + 1]: shares of glimpses with scale nearest to 1, 1/2, 1/4, ... (in octaves)."""
    octave = np.clip(np.round(-np.log2(viewpoints[:, 2])), 0, halvings).astype(int)
    return np.bincount(octave, minlength=halvings + 1) / max(len(octave), 1)


def scale_bars(entry: Entry, halvings: int) -> list[tuple[float, float]]:
    """(scale, share) of the glimpses after the first: the policy's own scales if there are few, else in octaves."""
    later = entry.viewpoints[:, 1:].reshape(-1, 3)
    if entry.scales is None:
        return [(2.0**-octave, share) for octave, share in enumerate(scale_shares(later, halvings).tolist())]
    found = later[:, 2].astype(np.float64).round(SCALE_DIGITS)
    return [(scale, float((found == scale).mean())) for scale in entry.scales]


def scales_figure(benchmark: Benchmark) -> str:
    """Stacked shares of the scales of glimpses after the first, a bar per policy, with the scales if there are few."""
    finest = min(float(entry.viewpoints[:, 1:, 2].min(initial=1)) for entry in benchmark.entries)
    halvings = max(1, int(np.ceil(-np.log2(finest) - 0.5)))
    with report_style():
        labels = [entry.label for entry in benchmark.entries]
        figure, axes = plt.subplots(figsize=(6.2, 0.27 * len(labels) + 0.8))
        for line, entry in enumerate(benchmark.entries):
            left = 0.0
            for scale, share in scale_bars(entry, halvings):
                colour = SCALE_COLOURS(-np.log2(scale) / halvings)
                axes.barh(line, 100 * share, left=left, height=0.72, color=colour)
                if entry.scales is not None and share >= LABELLED_SHARE:
                    axes.text(
                        left + 50 * share, line, scale_text(scale), ha="center", va="center", fontsize=7.5,
                        color=ON_BRIGHT if np.dot(colour[:3], LUMINANCE) > 0.45 else ON_DARK,
                    )  # fmt: skip
                left += 100 * share
        axes.set_yticks(range(len(labels)), labels=[visible(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the glimpses after the first, %")
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        keys = [
            Patch(color=SCALE_COLOURS(octave / halvings), label=scale_text(2.0**-octave))
            for octave in range(halvings + 1)
        ]
        axes.legend(
            handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=halvings + 1, title="scale of the glimpse",
            handlelength=1, columnspacing=1.2, fontsize=8.5, title_fontsize=8.5, alignment="left",
        )  # fmt: skip
        return svg_text(figure)
