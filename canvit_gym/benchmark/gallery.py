"""The gallery: the same scenes under several policies, chosen by the difference of one policy to the reference.

No policy is run: taking the recorded viewpoints again gives the recorded readings. Pictures are WebP files, and
gallery.json lists what they show.
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from canvit_gym.atomic import write_json
from canvit_gym.benchmark.comparison import per_scene
from canvit_gym.benchmark.gaze_picture import GAP_PX, PICTURE_PX, scene_strip
from canvit_gym.benchmark.records import Benchmark, Entry
from canvit_gym.config import EnvConfig
from canvit_gym.drawing import INK, blank, fitted, font, legend_picture
from canvit_gym.episodes import EpisodeView
from canvit_gym.escaping import visible
from canvit_gym.rendering import glimpse_colour
from canvit_gym.replay import replay

GALLERY, INDEX = "gallery", "gallery.json"
PER_KIND = 2
"""Number of best, median and worst scenes each."""
READINGS = 5
"""The largest number of readings in a row."""
QUALITY, WIDTH_PX = 50, 1060
LABEL_PX, HEADER_PX, LEGEND_PX = 26, 30, 46


def shown_glimpses(budget: int) -> list[int]:
    """Glimpses (from 1) whose readings are shown: all, or the first, the last and some in between, denser at first."""
    if budget <= READINGS:
        return list(range(1, budget + 1))
    return sorted({round(t) for t in np.geomspace(1, budget, READINGS)})


def choose_scenes(gain: NDArray[np.float64]) -> list[tuple[str, int]]:
    """("best" | "median" | "worst", row) by gain [N], best first within its kind; no scene twice."""
    order = np.argsort(-gain, kind="stable")
    count = max(1, min(PER_KIND, len(order) // 3))
    middle = (len(order) - count) // 2
    kinds = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:][::-1]}
    chosen: dict[int, str] = {}
    for kind, rows in kinds.items():
        for row in rows.tolist():
            chosen.setdefault(row, kind)
    return [(kind, row) for row, kind in chosen.items()]


def _focus(benchmark: Benchmark, label: str | None) -> Entry:
    """The policy whose gain chooses the scenes."""
    if label is not None:
        return next(entry for entry in benchmark.entries if label in (entry.label, entry.spec))
    candidates = [e for e in benchmark.entries if not e.uses_labels and e is not benchmark.reference]
    return max(
        candidates or benchmark.entries, key=lambda e: (e.learned and e.deterministic, float(e.first.score()[-1]))
    )


def _lines(benchmark: Benchmark, focus: Entry) -> list[Entry]:
    """The reference, the focus, the best of the other hand-coded policies, and the ceiling."""
    reference = benchmark.reference
    others = [e for e in benchmark.entries if not (e.uses_labels or e.learned) and e not in (focus, reference)]
    lines = [reference, *([focus] if focus is not reference else [])]
    if others:
        lines.append(max(others, key=lambda e: float(e.first.score()[-1])))
    return lines + [e for e in benchmark.entries if e.uses_labels and e is not focus][:1]


def draw_gallery(benchmark: Benchmark, *, config: EnvConfig, policy: str | None = None) -> None:
    """Write gallery/*.webp and gallery.json, replacing what was there.

    Raises:
        ValueError: `policy` is not in the benchmark, or is the reference.
    """
    focus, reference = _focus(benchmark, policy), benchmark.reference
    lines = _lines(benchmark, focus)
    common = reduce(np.intersect1d, [entry.first.scene for entry in lines])  # every policy was evaluated on these
    gain = (per_scene(focus.first.on(common)) - per_scene(reference.first.on(common)))[:, -1]
    chosen = choose_scenes(gain)
    scenes = common[[row for _, row in chosen]]
    views = {
        entry.label: [
            [moment.view for moment in of_scene]
            for of_scene in replay(entry.first.on(scenes).viewpoints, scenes, config=config)
        ]
        for entry in lines
    }

    directory = benchmark.directory / GALLERY
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("*.webp"):
        stale.unlink()
    index: dict[str, Any] = {
        "policy": focus.label,
        "reference": reference.label,
        "lines": [entry.label for entry in lines],
        "num_scenes": len(common),
        "seed": focus.first.seed,
        "pictures": [],
    }
    for place, (kind, row) in enumerate(chosen):
        name = f"{kind}-scene-{scenes[place]}.webp"
        _draw({label: of_policy[place] for label, of_policy in views.items()}, directory / name)
        index["pictures"].append(
            {"file": name, "kind": kind, "scene": int(scenes[place]), "gain": float(gain[row])}
        )  # fmt: skip
    write_json(directory / INDEX, index)


def _draw(views: dict[str, Sequence[EpisodeView]], path: Path) -> None:
    """A row per policy: the gaze, readings, the truth."""
    first = next(iter(views.values()))[0]
    shown = shown_glimpses(first.budget)
    picture = first.picture
    has_truth = picture.truth(first, PICTURE_PX) is not None
    strips = {
        label: scene_strip([of_policy[t - 1] for t in shown], num_readings=len(shown))
        for label, of_policy in views.items()
    }
    width, line_px = next(iter(strips.values())).width, LABEL_PX + next(iter(strips.values())).height
    page = blank(width + 2 * GAP_PX, HEADER_PX + len(strips) * line_px + LEGEND_PX * picture.has_legend + GAP_PX)
    draw = ImageDraw.Draw(page)
    headers = ["scene and gaze", *(f"after glimpse {t}" for t in shown), *["truth"] * has_truth]
    for place, header in enumerate(headers):
        x = GAP_PX + place * (PICTURE_PX + GAP_PX)
        draw.text((x + PICTURE_PX / 2, HEADER_PX / 2), header, fill=INK, font=font(15), anchor="mm")
        if 0 < place <= len(shown):
            colour = glimpse_colour(shown[place - 1] - 1, first.budget)
            draw.line((x, HEADER_PX - 4, x + PICTURE_PX - 1, HEADER_PX - 4), fill=colour, width=3)
    for place, (label, strip) in enumerate(strips.items()):
        top = HEADER_PX + place * line_px
        text = fitted(draw, visible(label), font(17), width)
        draw.text((GAP_PX, top + LABEL_PX / 2), text, fill=INK, font=font(17), anchor="lm")
        page.paste(strip, (GAP_PX, top + LABEL_PX))
    if picture.has_legend:
        entries = picture.legend([view for of_policy in views.values() for view in of_policy])
        legend = legend_picture(entries, width=width, text_px=14, lines=2)
        page.paste(legend, (GAP_PX, HEADER_PX + len(strips) * line_px))
    height = round(page.height * WIDTH_PX / page.width)
    page.resize((WIDTH_PX, height), Image.Resampling.LANCZOS).save(path, quality=QUALITY, method=6)
