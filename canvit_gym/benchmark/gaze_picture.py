"""Draw where a policy looked: each scene with its numbered glimpses, and the reading after each of them.

`draw_gaze` takes an `EpisodeView` after every glimpse of each episode. A row of the picture shows a scene with its
gaze, the reading after glimpse 1, 2, ..., T with the glimpse's box, and the truth.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from canvit_gym.drawing import FAINT, INK, blank, fitted, font, legend_picture, viewpoint_box
from canvit_gym.episodes import EpisodeView
from canvit_gym.rendering import glimpse_colour, scene_picture

PICTURE_PX = 168
GAP_PX = 8
COLUMN_GAP_PX = 40
MARGIN_PX = 24
CAPTION_PX = 22
BARS = 5
"""Number of classes shown for a reading that is not a map."""


def reading_picture(view: EpisodeView, size: int) -> Image.Image:
    """The reading, with the box of the last glimpse if it is a map."""
    if not view.picture.covers_scene:
        picture = blank(size, size)
        picture.paste(view.picture.reading(view, size, margin=GAP_PX, most=BARS), (GAP_PX, 0))
        return picture
    picture = view.picture.reading(view, size)
    if taken := len(view.viewpoints):
        box = viewpoint_box(view.viewpoints[-1], size)
        ImageDraw.Draw(picture).rectangle(box, outline=glimpse_colour(taken - 1, view.budget), width=2)
    return picture


def scene_strip(views: Sequence[EpisodeView], *, num_readings: int) -> Image.Image:
    """A scene's row: gaze, readings (space for `num_readings`), the truth if it is a map; captions below."""
    last = views[-1]
    truth = last.picture.truth(last, PICTURE_PX)
    pictures = [(scene_picture(last, PICTURE_PX), last.picture.caption(last))]
    for before, view in zip([None, *views], views, strict=False):
        pictures.append((reading_picture(view, PICTURE_PX), view.picture.verdict(view, before)))
    places = [*range(len(pictures))]
    if truth is not None:
        pictures.append((truth, ""))
        places.append(num_readings + 1)  # the truth keeps its column if an episode ended early
    strip = blank(strip_width(num_readings, has_truth=truth is not None), PICTURE_PX + CAPTION_PX)
    draw = ImageDraw.Draw(strip)
    for place, (picture, caption) in zip(places, pictures, strict=True):
        x = place * (PICTURE_PX + GAP_PX)
        strip.paste(picture, (x, 0))
        at = (x + PICTURE_PX / 2, PICTURE_PX + CAPTION_PX / 2)
        draw.text(at, caption, fill=FAINT, font=font(13), anchor="mm")
    return strip


def strip_width(num_readings: int, *, has_truth: bool) -> int:
    return (num_readings + 1 + has_truth) * (PICTURE_PX + GAP_PX) - GAP_PX


def draw_gaze(
    views_per_scene: Sequence[Sequence[EpisodeView]],
    path: Path,
    *,
    title: str = "Where the agent looks, and what the probe then reads",
    columns: int = 2,
) -> None:
    """Write a picture (PNG) of scenes, each a list of the EpisodeViews after glimpse 1, 2, ..., T."""
    if not views_per_scene or not all(views_per_scene):
        raise ValueError("draw_gaze needs at least one scene, and at least one view of each")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(views_per_scene))
    num_readings = max(len(views) for views in views_per_scene)
    first = views_per_scene[0][0]
    has_truth = first.picture.truth(first, PICTURE_PX) is not None
    strips = [scene_strip(views, num_readings=num_readings) for views in views_per_scene]
    width, height = strip_width(num_readings, has_truth=has_truth), strips[0].height
    lines = -(-len(strips) // columns)

    # The legend only has the classes in these pictures: a dozen scenes have few of 150 classes.
    shown = first.picture.legend([view for views in views_per_scene for view in views])
    page_width = columns * width + (columns - 1) * COLUMN_GAP_PX + 2 * MARGIN_PX
    legend = legend_picture(shown, width=page_width - 2 * MARGIN_PX, text_px=16, lines=2)
    title_px, header_px = 48, 32
    top = MARGIN_PX // 2 + title_px + header_px
    bottom = legend.height + MARGIN_PX if first.picture.has_legend else 0
    page = blank(page_width, top + lines * height + bottom + MARGIN_PX // 2)
    draw = ImageDraw.Draw(page)
    title = fitted(draw, title, font(24), page_width - 2 * MARGIN_PX)
    draw.text((MARGIN_PX, MARGIN_PX // 2 + title_px / 2), title, fill=INK, font=font(24), anchor="lm")

    headers = ["scene and gaze", *(f"after glimpse {t + 1}" for t in range(num_readings)), *["truth"] * has_truth]
    for column in range(columns):
        left = MARGIN_PX + column * (width + COLUMN_GAP_PX)
        for place, header in enumerate(headers):
            at = (left + place * (PICTURE_PX + GAP_PX) + PICTURE_PX / 2, top - header_px + 12)
            colour = glimpse_colour(place - 1, first.budget) if 0 < place <= num_readings else INK
            draw.text(at, header, fill=INK, font=font(15), anchor="mm")
            half = PICTURE_PX / 2
            draw.line((at[0] - half, top - 5, at[0] + half - 1, top - 5), fill=colour, width=3)
    for index, strip in enumerate(strips):
        line, column = index % lines, index // lines  # first column top to bottom, then the next
        page.paste(strip, (MARGIN_PX + column * (width + COLUMN_GAP_PX), top + line * height))
    if first.picture.has_legend:
        page.paste(legend, (MARGIN_PX, top + lines * height + MARGIN_PX // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
