"""How readings and truths of a task are drawn, for canvit_gym.rendering and the gallery.

A view (canvit_gym.episodes.EpisodeView) is one episode on the host; the formats of its `prediction` and `truth` are
the task's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from canvit_gym.drawing import LegendEntry, bars_picture, class_legend, label_picture, share_picture

if TYPE_CHECKING:
    from canvit_gym.episodes import EpisodeView

Panel = tuple[str, Image.Image]
"""(title, picture)"""


class TaskPicture(Protocol):
    """Draws the readings and truths of one kind of task."""

    def panels(self, view: "EpisodeView", size: int, gap: int) -> list[Panel]:
        """Reading and truth for a frame: two panels of `size` px, or one that spans both and the gap between them."""
        ...

    def reading(self, view: "EpisodeView", size: int, *, margin: int = 0, most: int | None = None) -> Image.Image:
        """The reading alone, `size` px high and, less the margins, as wide; for classes, the `most` likely ones."""
        ...

    def truth(self, view: "EpisodeView", size: int) -> Image.Image | None:
        """The truth alone, `size` px wide and high; None if it is no picture and `caption` states it."""
        ...

    def caption(self, view: "EpisodeView") -> str:
        """The truth in a word or two; empty if `truth` shows it."""
        ...

    def verdict(self, view: "EpisodeView", before: "EpisodeView | None") -> str:
        """How good the reading is, in a few characters, and how it changed since the view before."""
        ...

    @property
    def verdict_doc(self) -> str:
        """What `verdict` shows, for a caption: "its score and the change to the one before"."""
        ...

    @property
    def covers_scene(self) -> bool:
        """Whether positions in `reading` are positions in the scene, so that viewpoints can be drawn over it."""
        ...

    @property
    def has_legend(self) -> bool:
        """Whether colours have names."""
        ...

    def legend(self, views: Sequence["EpisodeView"]) -> list[LegendEntry]:
        """Names and colours of what the views show."""
        ...


class LabelMapPicture:
    """Label maps [H, W], a colour for each class."""

    covers_scene = has_legend = True
    verdict_doc = "its score and the change to the one before"

    def panels(self, view: "EpisodeView", size: int, gap: int) -> list[Panel]:
        return [
            ("Reading of the probe", self.reading(view, size)),
            ("Truth", label_picture(view.truth, view.classes, size)),
        ]

    def reading(self, view: "EpisodeView", size: int, *, margin: int = 0, most: int | None = None) -> Image.Image:
        return label_picture(view.prediction.astype(np.int64), view.classes, size)

    def truth(self, view: "EpisodeView", size: int) -> Image.Image | None:
        return label_picture(view.truth, view.classes, size)

    def caption(self, view: "EpisodeView") -> str:
        return ""

    def verdict(self, view: "EpisodeView", before: "EpisodeView | None") -> str:
        return score_and_change(view, before)

    def legend(self, views: Sequence["EpisodeView"]) -> list[LegendEntry]:
        """The true classes, then the other classes read, each in order: the first part stays put over an episode."""
        classes = views[0].classes
        truth = {int(c) for view in views for c in np.unique(view.truth) if c < len(classes)}
        read = {int(c) for view in views for c in np.unique(view.prediction.astype(np.int64))}
        return class_legend([*sorted(truth), *sorted(read - truth)], classes)


class ClassPicture:
    """Probabilities [K] of classes as bars, the true one green."""

    covers_scene = has_legend = False
    verdict_doc = "whether it is right"

    def panels(self, view: "EpisodeView", size: int, gap: int) -> list[Panel]:
        # A class has no place in the scene: the truth is marked among the bars, which take its panel.
        bars = self._bars(view, 2 * size + gap, size)
        return [(f"Reading of the probe (truth: {self.caption(view)})", bars)]

    def reading(self, view: "EpisodeView", size: int, *, margin: int = 0, most: int | None = None) -> Image.Image:
        return self._bars(view, size - 2 * margin, size, most)

    def truth(self, view: "EpisodeView", size: int) -> Image.Image | None:
        return None

    def caption(self, view: "EpisodeView") -> str:
        return view.classes[int(view.truth)]

    def verdict(self, view: "EpisodeView", before: "EpisodeView | None") -> str:
        now = _score(view)
        return "" if not np.isfinite(now) else "right" if now == 1 else "wrong"

    def legend(self, views: Sequence["EpisodeView"]) -> list[LegendEntry]:
        return []

    def _bars(self, view: "EpisodeView", width: int, height: int, most: int | None = None) -> Image.Image:
        return bars_picture(view.prediction, int(view.truth), view.classes, width=width, height=height, most=most)


class FeaturePicture:
    """Features [D, G, G] of canvas cells: how well each cell is predicted, and the true ones in colours."""

    covers_scene, has_legend = True, False
    verdict_doc = "its score and the change to the one before"

    def panels(self, view: "EpisodeView", size: int, gap: int) -> list[Panel]:
        return [("Cosine with the truth", self.reading(view, size)), ("Truth (PCA)", self.truth(view, size))]

    def reading(self, view: "EpisodeView", size: int, *, margin: int = 0, most: int | None = None) -> Image.Image:
        """The cosine of every cell: pale yellow at 1, dark blue at 0 and below."""
        predicted, true = view.prediction, view.truth
        lengths = np.linalg.norm(predicted, axis=0) * np.linalg.norm(true, axis=0)
        return share_picture((predicted * true).sum(axis=0) / np.maximum(lengths, 1e-8), size)

    def truth(self, view: "EpisodeView", size: int) -> Image.Image:
        """The three directions along which the scene's features differ most, as red, green and blue."""
        cells = view.truth.reshape(len(view.truth), -1).T  # [G * G, D]
        centered = cells - cells.mean(axis=0)
        _, _, directions = np.linalg.svd(centered, full_matrices=False)
        along = centered @ directions[:3].T
        along *= np.where(along.max(axis=0) < -along.min(axis=0), -1, 1)  # a direction's sign is arbitrary
        low, high = along.min(axis=0), along.max(axis=0)
        colours = np.zeros((len(cells), 3))
        colours[:, : along.shape[1]] = (along - low) / np.maximum(high - low, 1e-8)
        pixels = np.round(255 * colours).astype(np.uint8).reshape(*view.truth.shape[1:], 3)
        return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)

    def caption(self, view: "EpisodeView") -> str:
        return ""

    def verdict(self, view: "EpisodeView", before: "EpisodeView | None") -> str:
        return score_and_change(view, before)

    def legend(self, views: Sequence["EpisodeView"]) -> list[LegendEntry]:
        return []


def score_and_change(view: "EpisodeView", before: "EpisodeView | None") -> str:
    """The score in %, with its name, or the change since the view before; empty if it was not measured."""
    now = _score(view)
    if not np.isfinite(now):
        return ""
    if before is None or not np.isfinite(then := _score(before)):
        return f"{view.metric.name} {100 * now:.0f}"
    return f"{100 * now:.0f} ({round(100 * (now - then)):+d})"


def _score(view: "EpisodeView") -> float:
    return float(view.score_curve[len(view.viewpoints)])
