"""Pictures of episodes, with NumPy and Pillow alone.

A frame is a grid of square panels of `size` px: the scene with its glimpses, the last glimpse as the
backbone sees it, the canvas, the probe's reading, the truth (both drawn by the task), and the curves of loss and
score. Its size depends only on the panel size and the task. Frames are uint8 RGB [H, W, 3]; viewpoints are (row,
col, scale) in [-1, 1]², as in canvit_pytorch, and pixel boxes (left, top, right, bottom), as in Pillow.

A canvas is coloured by its first three principal components. If the basis were fitted to every frame anew, colours
would flip between frames, so `canvas_colours` fits it once per backbone and set of scenes, on canvases of reference
scenes: the same feature has the same colour in every frame, environment and process.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from canvit_pytorch.preprocess import imagenet_normalize
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from canvit_gym.backbone.canvas import normalized_canvas
from canvit_gym.backbone.load import Backbone
from canvit_gym.drawing import (
    EMPTY,
    FAINT,
    INK,
    RULE,
    WHITE,
    Colour,
    blank,
    draw_box,
    fitted,
    font,
    legend_picture,
    viewpoint_box,
)
from canvit_gym.dtypes import float32_by_default
from canvit_gym.episodes import EpisodeView
from canvit_gym.scenes.sampler import batches_ahead
from canvit_gym.scenes.source import SceneSource

Frame = NDArray[np.uint8]  # [H, W, 3]

PANEL_PX = 256
MIN_PANEL_PX = 96
"""Below this, titles do not fit their panels."""

LOSS: Colour = (200, 80, 30)
SCORE: Colour = (25, 105, 175)

_RAMP: tuple[Colour, ...] = ((70, 105, 235), (0, 185, 200), (120, 205, 60), (255, 195, 40), (245, 60, 50))

_REFERENCE_SCENES = 16
_REFERENCE_LOOKS = ((0, 0, 1), (-0.5, -0.5, 0.5), (-0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5, 0.5))
_QUANTILES = (0.02, 0.98)


@dataclass(frozen=True, eq=False)
class CanvasColours:
    """An affine map from layer-normalized canvas tokens to RGB."""

    mean: NDArray[np.float32]  # [D]
    components: NDArray[np.float32]  # [D, 3], orthonormal
    low: NDArray[np.float32]  # [3], shown as 0
    high: NDArray[np.float32]  # [3], shown as 255

    @classmethod
    def fit(cls, canvases: NDArray[np.float32]) -> "CanvasColours":
        """The first three principal components of canvases [n, G, G, D], from their 2% to their 98% quantile.

        Computed within canvases: what all cells of a canvas share does not show where things are.
        """
        width = canvases.shape[-1]
        if width < 3:
            raise ValueError(f"colours need tokens at least 3 wide, got {width}")
        inside = (canvases - canvases.mean(axis=(1, 2), keepdims=True)).reshape(-1, width).astype(np.float64)
        _, vectors = np.linalg.eigh(inside.T @ inside)  # ascending
        components = vectors[:, :-4:-1]
        # Eigenvectors are defined up to sign: the largest entry is made positive.
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
        components = (components * np.where(largest < 0, -1, 1)).astype(np.float32)
        mean = canvases.mean(axis=(0, 1, 2))
        shown = (canvases - mean).reshape(-1, width) @ components
        low, high = np.quantile(shown, _QUANTILES, axis=0).astype(np.float32)
        return cls(mean=mean, components=components, low=low, high=np.maximum(high, low + 1e-3))

    def __call__(self, canvas: NDArray[np.float32]) -> Frame:
        """[G, G, D] -> [G, G, 3]."""
        if canvas.shape[-1] != len(self.mean):
            raise ValueError(
                f"these colours are of canvases {len(self.mean)} wide, this one is {canvas.shape[-1]} wide: "
                "fit them with canvas_colours(backbone, scenes) of the same environment"
            )
        shares = ((canvas - self.mean) @ self.components - self.low) / (self.high - self.low)
        return (shares.clip(0, 1) * 255).round().astype(np.uint8)


_FITTED: dict[tuple[str, str], CanvasColours] = {}


@float32_by_default()
@torch.no_grad()
def canvas_colours(backbone: Backbone, scenes: SceneSource) -> CanvasColours:
    """The colours of a backbone's canvases, fitted to the first scenes of a set after one and five glimpses.

    Fitted once per process, checkpoint and set, at the cost of five glimpses of up to 16 scenes.
    """
    key = (backbone.sha256, scenes.name)
    if key not in _FITTED:
        chosen = next(batches_ahead(scenes, np.arange(len(scenes)), batch_size=_REFERENCE_SCENES))
        count = len(chosen)
        images = scenes.load(chosen).images.to(backbone.device).float().div_(255)
        images = imagenet_normalize(images)
        state, canvases = backbone.init_state(count), []
        for row, col, scale in _REFERENCE_LOOKS:
            viewpoint = Viewpoint(
                centers=torch.tensor([[row, col]] * count, dtype=torch.float32, device=backbone.device),
                scales=torch.full((count,), float(scale), device=backbone.device),
            )
            glimpse = backbone.glimpse(images, viewpoint)
            with backbone.autocast():  # not backbone.step, which would be compiled for these few
                canvas, cls = backbone.fast_step(
                    glimpse, state.canvas, state.recurrent_cls, viewpoint.centers, viewpoint.scales
                )
            state = RecurrentState(canvas=canvas, recurrent_cls=cls)
            cells = normalized_canvas(backbone, state).unflatten(1, (backbone.canvas_grid, -1))
            canvases.append(cells.cpu().numpy())
        _FITTED[key] = CanvasColours.fit(np.concatenate([canvases[0], canvases[-1]]))
    return _FITTED[key]


def glimpse_colour(index: int, budget: int) -> Colour:
    """The colour of glimpse `index` (from 0), from blue for the first to red for the last of the budget."""
    position = index / max(budget - 1, 1) * (len(_RAMP) - 1)
    lower = min(int(position), len(_RAMP) - 2)
    weight = position - lower
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(_RAMP[lower], _RAMP[lower + 1], strict=True))
    return red, green, blue


def _ink_on(colour: Colour) -> Colour:
    return INK if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140 else WHITE


def scene_picture(view: EpisodeView, size: int) -> Image.Image:
    """The scene with its glimpses as numbered boxes, the last one bold."""
    picture = Image.fromarray(view.image).resize((size, size), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    last = len(view.viewpoints) - 1
    thin = max(size // 128, 1)
    height = max(size // 15, 9)
    boxes = [viewpoint_box(viewpoint, size) for viewpoint in view.viewpoints]
    for index, box in enumerate(boxes):
        draw_box(draw, box, glimpse_colour(index, view.budget), 2 * thin if index == last else thin)
    tags: list[tuple[int, int, int, int]] = []
    for index, box in enumerate(boxes):
        text = str(index + 1)
        width = round(draw.textlength(text, font(height))) + height // 2
        tag = _free_corner(box, width, height + 2, tags)
        tags.append(tag)
        colour = glimpse_colour(index, view.budget)
        draw.rectangle(tag, fill=colour, outline=INK)
        middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(middle, text, fill=_ink_on(colour), font=font(height), anchor="mm")
    return picture


def _free_corner(
    box: tuple[int, int, int, int], width: int, height: int, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """The first place for a tag inside a box that covers no other: the corners, then along top and bottom."""
    left, top, right, bottom = box
    lefts = [left, right - width, *range(left, max(right - width, left) + 1, max(width // 2, 1))]
    tags = [(x, y, x + width, y + height) for y in (top, bottom - height) for x in lefts]
    for tag in tags:
        if all(tag[2] < t[0] or t[2] < tag[0] or tag[3] < t[1] or t[3] < tag[1] for t in taken):
            return tag
    return tags[0]


def glimpse_picture(view: EpisodeView, size: int) -> Image.Image:
    """The pixels of the last glimpse, framed in its colour."""
    taken = len(view.viewpoints)
    if not taken:
        return _note("no glimpse yet", size)
    picture = Image.fromarray(view.glimpse).resize((size, size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    draw_box(draw, (0, 0, size - 1, size - 1), glimpse_colour(taken - 1, view.budget), 2 * max(size // 128, 1))
    return picture


def _note(text: str, size: int) -> Image.Image:
    picture = blank(size, size, EMPTY)
    ImageDraw.Draw(picture).text((size / 2, size / 2), text, fill=FAINT, font=font(size // 16), anchor="mm")
    return picture


def curves_picture(view: EpisodeView, size: int) -> Image.Image:
    """Score above, loss below, against glimpses taken; values that were not measured are left out."""
    picture = blank(size, size)
    finite = view.loss_curve[np.isfinite(view.loss_curve)]
    # The loss rarely exceeds its first value, so the axis does not move over an episode.
    ceiling = _ceiling(float(finite.max())) if len(finite) else 1.0
    start = 0 if np.isfinite(view.loss_curve[0]) or not len(view.viewpoints) else 1
    half_size = (size, size // 2)
    score = _curve(view.score_curve, start=start, ceiling=1, label=view.metric.name, colour=SCORE, size=half_size)
    loss = _curve(view.loss_curve, start=start, ceiling=ceiling, label="loss", colour=LOSS, size=half_size)
    picture.paste(score, (0, 0))
    picture.paste(loss, (0, size - half_size[1]))
    return picture


def _ceiling(value: float) -> float:
    """The smallest of 1, 1.5, 2, 3, 5, 7 times a power of ten that is at least `value`, if that is positive."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 1.5, 2, 3, 5, 7, 10) if m * power >= value * (1 - 1e-6))


def _curve(
    curve: NDArray[np.float32],
    *,
    start: int,
    ceiling: float,
    label: str,
    colour: Colour,
    size: tuple[int, int],
) -> Image.Image:
    """One curve with its axes; drawn at three times the size and reduced, since Pillow's lines are not anti-aliased."""
    width, height = size
    text = max(width // 20, 9)
    left, right, top, bottom = 2.3 * text, width - 0.7 * text, 1.7 * text, height - 1.5 * text
    budget = len(curve) - 1
    span = max(budget - start, 1)

    def place(glimpses: int, value: float) -> tuple[float, float]:
        share = min(max(value / ceiling, 0), 1)
        return left + (glimpses - start) / span * (right - left), bottom - share * (bottom - top)

    fold = 3
    lines = blank(width * fold, height * fold)
    draw = ImageDraw.Draw(lines)
    for value in (0, ceiling / 2, ceiling):
        y = place(start, value)[1] * fold
        draw.line((left * fold, y, right * fold, y), fill=RULE if value else FAINT, width=fold)
    known = [(g, float(v)) for g, v in enumerate(curve) if g >= start and np.isfinite(v)]
    points = [(x * fold, y * fold) for x, y in (place(g, v) for g, v in known)]
    for (g, _), (h, _), a, b in zip(known, known[1:], points, points[1:], strict=False):
        if h == g + 1:
            draw.line((*a, *b), fill=colour, width=max(width // 110, 1) * fold)
    for index, (x, y) in enumerate(points):
        radius = (0.032 if index == len(points) - 1 else 0.02) * width * fold / 2
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    picture = lines.resize(size, Image.Resampling.LANCZOS)

    draw = ImageDraw.Draw(picture)
    now = f"{known[-1][1]:.3f}" if known else "not measured"
    draw.text((left, 0), f"{label}  {now}", fill=colour, font=font(text + 1), anchor="la")
    for value in (0, ceiling):
        y = place(start, value)[1]
        draw.text((left - text / 3, y), f"{value:g}", fill=FAINT, font=font(text - 2), anchor="rm")
    stride = -(-span // 6)
    for glimpses in range(start, budget + 1, stride):
        x = place(glimpses, 0)[0]
        draw.text((x, bottom + text / 3), str(glimpses), fill=FAINT, font=font(text - 2), anchor="ma")
    return picture


def draw_frame(
    view: EpisodeView, *, colours: CanvasColours | None = None, size: int = PANEL_PX, columns: int = 3
) -> Frame:
    """The current state of an episode: uint8 RGB [H, W, 3], H and W even, as video codecs require.

    colours: how canvases are coloured: `canvas_colours(backbone, scenes)` for frames that can be compared;
        None fits them to this canvas alone, for a single picture.
    size: side of a panel, px. columns: panels in a line (3, or 6 for one strip).
    """
    if size < MIN_PANEL_PX:
        raise ValueError(f"size must be at least {MIN_PANEL_PX} px for the titles to fit, got {size}")
    if columns not in (2, 3, 6):
        raise ValueError(f"columns must be 2, 3 or 6, for six panels, got {columns}")
    if colours is None:
        colours = CanvasColours.fit(view.canvas[None])
    taken = len(view.viewpoints)
    scale = f", scale {view.viewpoints[-1, 2]:.2g}" if taken else ""
    canvas = Image.fromarray(colours(view.canvas)).resize((size, size), Image.Resampling.NEAREST)
    gap = max(size // 16, 6)
    what = f"Find: {view.goal}" if view.goal else "Scene"
    panels = [
        (f"{what}, {taken} of {view.budget} glimpses", scene_picture(view, size)),
        (f"Glimpse {taken}{scale}" if taken else "Glimpse", glimpse_picture(view, size)),
        ("Canvas (PCA)", canvas),
    ]
    panels += [*view.picture.panels(view, size, gap), ("Curves", curves_picture(view, size))]

    text = max(size // 16, 9)
    title = round(1.7 * text)
    legend = 2 * round(1.6 * text) + gap // 2 if view.picture.has_legend else 0
    lines = 6 // columns
    width = columns * size + (columns + 1) * gap
    height = lines * (title + size + gap) + gap // 2 + legend
    frame = blank(width + width % 2, height + height % 2)
    draw = ImageDraw.Draw(frame)
    place = 0
    for name, picture in panels:
        spans = round(picture.width / size)
        if place % columns + spans > columns:  # with two columns, a wide panel does not fit in the second
            place += 1
        x = gap + place % columns * (size + gap)
        y = gap // 2 + place // columns * (title + size + gap)
        name = fitted(draw, name, font(text), picture.width)
        draw.text((x, y + title / 2), name, fill=INK, font=font(text), anchor="lm")
        frame.paste(picture, (x, y + title))
        place += spans
    if legend:
        chips = legend_picture(view.picture.legend([view]), width=width - 2 * gap, text_px=text - 1, lines=2)
        frame.paste(chips, (gap, height - legend))
    return np.asarray(frame).copy()


def tile_frames(frames: Sequence[Frame], *, columns: int | None = None) -> Frame:
    """Frames of one size in a grid, by default with about as many lines as columns."""
    if not frames or len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"tile_frames needs frames of one shape, got {[frame.shape for frame in frames]}")
    columns = math.ceil(math.sqrt(len(frames))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(frames))
    lines = -(-len(frames) // columns)
    height, width, _ = frames[0].shape
    tiled = np.full((lines * height, columns * width, 3), 255, dtype=np.uint8)
    for place, frame in enumerate(frames):
        row, col = divmod(place, columns)
        tiled[row * height : (row + 1) * height, col * width : (col + 1) * width] = frame
    return tiled


class Window:
    """A window that shows frames at `fps`; needs tkinter (in Python's standard library) and a display."""

    def __init__(self, title: str, *, fps: float) -> None:
        """Raises:
        RuntimeError: there is no tkinter, or no display.
        """
        cure = 'Use render_mode="rgb_array", which needs no display.'
        try:
            import tkinter
        except ImportError as error:
            raise RuntimeError(f"render_mode 'human' needs tkinter, which this Python lacks. {cure}") from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise RuntimeError(f"render_mode 'human' cannot open a window: {error}. {cure}") from error
        self._root.title(title)
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._picture = tkinter.PhotoImage(master=self._root)
        self._period_s = 1 / fps
        self._due_s = time.monotonic()
        self.is_open = True

    def show(self, frame: Frame) -> None:
        """Show a frame after the last one has been up for 1 / fps; does nothing if the user has closed the window."""
        while self.is_open and (wait := self._due_s - time.monotonic()) > 0:
            self._root.update()  # or the window looks frozen
            time.sleep(min(wait, 0.02))
        if not self.is_open:
            return
        height, width, _ = frame.shape
        header = f"P6 {width} {height} 255\n".encode()
        self._picture.configure(data=header + frame.tobytes(), format="PPM")
        self._label.configure(image=self._picture)
        self._root.update()
        self._due_s = time.monotonic() + self._period_s

    def close(self) -> None:
        """Idempotent."""
        if self.is_open:
            self.is_open = False
            self._root.destroy()


def display_exists() -> bool:
    """Whether a window can probably be opened: cheap, and without side effects."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY"))
