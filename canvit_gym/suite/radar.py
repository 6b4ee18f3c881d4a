"""The suite's radar: a small plot per policy with an axis per skill, from the baseline (the middle) to the ceiling (the
rim), as in bsuite's radar."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from canvit_gym.benchmark.plots import COLOURS, FAINT, INK, RULE, panel_title, report_style, svg_text
from canvit_gym.escaping import visible

COLUMNS = 4
LOWEST, RIM = -0.25, 1.1
"""Shares beyond these limits are drawn at them."""


def radar_figure(shares: dict[str, dict[str, float]], skills: Sequence[str]) -> str:
    """Shares by policy and skill, as SVG. The axis of a skill for which a policy has no share stays empty."""
    columns = min(COLUMNS, len(shares))
    lines = -(-len(shares) // columns)
    angles = 2 * np.pi * np.arange(len(skills)) / len(skills)
    with report_style():
        figure, panels = plt.subplots(
            lines, columns, figsize=(3.1 * columns, 2.9 * lines), squeeze=False, subplot_kw={"projection": "polar"}
        )
        for place, (axes, (name, of_policy)) in enumerate(zip(panels.flat, shares.items(), strict=False)):
            colour = COLOURS[place % len(COLOURS)]
            known = [i for i, skill in enumerate(skills) if skill in of_policy]
            values = np.clip([of_policy[skills[i]] for i in known], LOWEST, RIM)
            around = [*known, *known[:1]] if len(known) > 2 else known
            axes.plot(angles[around], [*values, *values[:1]][: len(around)], color=colour, linewidth=1.6)
            if len(known) > 2:
                axes.fill(angles[known], values, color=colour, alpha=0.18, linewidth=0)
            axes.plot(angles[known], values, "o", color=colour, markersize=3.5)
            axes.set_theta_zero_location("N")
            axes.set_theta_direction(-1)
            axes.set_ylim(LOWEST, RIM)
            axes.set_yticks([0, 0.5, 1], labels=["0", "", "1"], fontsize=6.5, color=FAINT)
            axes.set_xticks(angles, labels=[_wrapped(skill) for skill in skills], fontsize=6.5)
            axes.tick_params(axis="x", pad=1)
            for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
                across = np.sin(angle)
                label.set_horizontalalignment("left" if across > 0.1 else "right" if across < -0.1 else "center")
            axes.grid(color=RULE, linewidth=0.6)
            axes.plot(np.linspace(0, 2 * np.pi, 100), np.zeros(100), color=FAINT, linewidth=0.8)
            axes.plot(np.linspace(0, 2 * np.pi, 100), np.ones(100), color=INK, linewidth=0.9)
            axes.spines["polar"].set_visible(False)
            axes.set_title(panel_title(name), fontsize=8.5, loc="center", pad=12)
        for axes in panels.flat[len(shares) :]:
            axes.set_visible(False)
        figure.tight_layout(w_pad=1.5, h_pad=1.5)
        return svg_text(figure)


def _wrapped(text: str) -> str:
    """In two lines if it is long."""
    words = visible(text).split()
    middle = (len(words) + 1) // 2
    return visible(text) if len(text) < 12 else "\n".join(" ".join(part) for part in (words[:middle], words[middle:]))
