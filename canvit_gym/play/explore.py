"""`canvit-gym explore RECORD`: one file that shows what policies saw, scene by scene.

Filter and sort scenes by score, by the difference between two policies, or by class; step through the glimpses; see the
viewpoints on the scene, the canvas, the reading, its uncertainty and the truth. A link with a fragment opens a scene.
The file needs no network and no server.

RECORD is the directory of a benchmark, or the files of single evaluations, people's among them.
"""

import base64
import hashlib
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from canvit_gym import escaping
from canvit_gym.assembly import build_backbone, build_scenes
from canvit_gym.benchmark.records import MANIFEST, load_benchmark
from canvit_gym.checks import integer
from canvit_gym.command_line import PROGRAM, run_command
from canvit_gym.episodes import EpisodeView
from canvit_gym.evaluation import Evaluation, name_of_split, recorded_config, recorded_perturbations
from canvit_gym.play.messages import MAP_PX, MOST_BARS, is_distribution, is_label_map, likeliest
from canvit_gym.play.page_files import read_page
from canvit_gym.play.pictures import class_colours, label_bytes, numbers, picture_uri, share_bytes
from canvit_gym.play.recording import taken_glimpses
from canvit_gym.rendering import canvas_colours
from canvit_gym.replay import Moment, replay

MOST_POLICIES = 6
PICTURE_PX = 192
"""The largest side of a scene's picture."""
LEVELS = np.uint8(0b1111_1000)
"""Canvases and uncertainties have 32 shades, which compress to half the size of 256."""
READING_PX = 64
"""Side of a reading that is neither a map of classes nor bars."""
_NOTHING = np.zeros((0, 0), dtype=np.uint8)
SAME_SCORE = 0.02
"""The largest difference in mean score between a replay and its record; with more, the models or data differ."""


@dataclass(frozen=True)
class ExploreConfig:
    records: tyro.conf.Positional[tuple[Path, ...]]
    """Directory of a benchmark, or files of evaluations."""
    output: Path = Path("explorer.html")
    """The file to write."""
    policies: tuple[str, ...] | None = None
    """By the names of the benchmark's tables. None: up to six, learned ones and ceilings among them."""
    num_scenes: int = 200
    """The largest number of scenes, from the first on."""
    root: Path | None = None
    """Directory of the data set, if it is not where the records say."""


@dataclass(frozen=True)
class Explored:
    """One policy's record."""

    label: str
    evaluation: Evaluation
    uses_labels: bool

    @property
    def about(self) -> str:
        return self.evaluation.record["policy"]["description"]


def load_records(paths: Sequence[Path], *, names: Sequence[str] | None = None) -> list[Explored]:
    """
    Raises:
        FileNotFoundError: no such file. ValueError: no record, records of different environments, or no such policy.
    """
    if not paths:
        raise ValueError("no record given: name the directory of a benchmark, or files of evaluations")
    found: list[Explored] = []
    for path in paths:
        if path.is_dir():
            benchmark = load_benchmark(path)
            if benchmark.numbers is not None:
                raise FileNotFoundError(
                    f"{path} holds the numbers of a benchmark but not its records: make them with the command that "
                    f"began it: {benchmark.manifest['provenance']['command']}"
                )
            entries = sorted(benchmark.entries, key=lambda entry: entry is not benchmark.reference)
            found += [Explored(entry.label, entry.first, entry.uses_labels) for entry in entries]
        elif path.name == MANIFEST:
            raise ValueError(f"{path} is one file of a benchmark: name its directory, {path.parent}")
        else:
            evaluation = Evaluation.load(path)
            policy = evaluation.record["policy"]
            label = policy["paper_name"]
            taken = [other.label for other in found]
            found.append(Explored(label if label not in taken else path.stem, evaluation, policy["uses_labels"]))
    _require_same(found)
    if names is not None:
        by_label = {explored.label: explored for explored in found}
        if unknown := [name for name in names if name not in by_label]:
            raise ValueError(f"no policy {', '.join(map(repr, unknown))} in these records: {', '.join(by_label)}")
        return [by_label[name] for name in names]
    return _chosen(found)


def _chosen(found: list[Explored]) -> list[Explored]:
    """The first (the reference), the best ceiling, and the best of the others, in the order of the records."""
    if len(found) <= MOST_POLICIES:
        return found

    def last(explored: Explored) -> float:
        return float(explored.evaluation.score()[-1])

    ceilings = sorted((e for e in found[1:] if e.uses_labels), key=last, reverse=True)[:1]
    others = sorted((e for e in found[1:] if not e.uses_labels), key=last, reverse=True)
    kept = [found[0], *ceilings, *others[: MOST_POLICIES - 1 - len(ceilings)]]
    return [explored for explored in found if any(explored is one for one in kept)]


def _require_same(found: Sequence[Explored]) -> None:
    """Check that records have the same scenes, perturbed in the same way, and the same probe; some policies may have
    seen fewer of the scenes."""

    def what(explored: Explored) -> tuple[str, ...]:
        record = explored.evaluation.record
        data = [str(record["config"][name]) for name in ("dataset", "split")]
        data.append(name_of_split(record["scenes"]))
        perturbed = json.dumps(record.get("perturbations", "not perturbed"))
        return (*data, perturbed, record["checkpoint"]["sha256"][:12], record["probe"]["sha256"][:12])

    for other in found[1:]:
        if what(other) != what(found[0]):
            raise ValueError(
                f"{found[0].label!r} and {other.label!r} are records of different environments (data set, split, "
                f"scenes, perturbations, checkpoint, probe): {', '.join(what(found[0]))} and {', '.join(what(other))}"
            )


def explorer_data(found: Sequence[Explored], *, num_scenes: int, root: Path | None = None) -> dict[str, Any]:
    """All that the page shows, as JSON values."""
    integer(1)("--num-scenes", num_scenes)
    most = max(found, key=lambda explored: len(explored.evaluation.scene))
    config = replace(recorded_config(most.evaluation), shard=(0, 1), **({"root": str(root)} if root else {}))
    scenes = most.evaluation.scene[:num_scenes]
    wanted = set(scenes.tolist())
    colours = canvas_colours(build_backbone(config), build_scenes(config))
    perturbations = recorded_perturbations(most.evaluation)
    rows: list[dict[int, int]] = []  # for each policy: scene -> its row in the record
    moments: list[dict[int, list[Moment]]] = []  # for each policy: scene -> a Moment after every glimpse
    for explored in found:
        row = {scene: i for i, scene in enumerate(explored.evaluation.scene.tolist()) if scene in wanted}
        rows.append(row)
        chosen = np.array(list(row), dtype=np.int64)
        shown = explored.evaluation.choose(np.array(list(row.values()), dtype=np.int64))
        of_policy = replay(
            shown.viewpoints,
            chosen,
            config=config,
            goal=shown.goal,
            perturbations=perturbations,
            taken=taken_glimpses(shown),
        )
        moments.append(dict(zip(row, of_policy, strict=True)))
        _warn_where_different(explored, row, moments[-1])
    listed = []
    first = next(iter(next(of_policy for of_policy in moments if of_policy).values()))[0]
    form = _form(first.view)
    unsure = first.uncertainty is not None and first.uncertainty.ndim == 3
    for scene in scenes.tolist():
        of_scene = [of_policy.get(scene) for of_policy in moments]
        view = next(steps[0] for steps in of_scene if steps).view
        maps: list[NDArray[np.uint8]] = [_truth(view, form)]
        for moment in (moment for steps in of_scene if steps for moment in steps):
            maps.append(_reading(moment.view, form))
            if moment.uncertainty is not None and unsure:
                maps.append(_coarse(share_bytes(moment.uncertainty[0])))
            maps.append(_coarse(colours(moment.view.canvas)))
        packed = zlib.compress(b"".join(np.ascontiguousarray(one).tobytes() for one in maps), 9)
        present = np.unique(view.truth) if form in ("map", "bars") else []
        about: dict[str, Any] = {
            "scene": scene,
            "goal": view.goal,
            "classes": [int(c) for c in present if 0 <= c < len(view.classes)],
            "picture": _picture(view.image),
            "scores": [
                numbers(e.evaluation.scene_score()[row[scene]]) if scene in row else None
                for e, row in zip(found, rows, strict=True)
            ],
            "viewpoints": [
                [numbers(v) for v in e.evaluation.viewpoints[row[scene]]] if scene in row else None
                for e, row in zip(found, rows, strict=True)
            ],
            "maps": base64.b64encode(packed).decode(),
        }
        if form == "bars":
            about["bars"] = [steps and [likeliest(m.view.prediction, MOST_BARS) for m in steps] for steps in of_scene]
        if first.uncertainty is not None and not unsure:
            about["uncertainties"] = [
                steps and numbers(float(m.uncertainty[0]) for m in steps if m.uncertainty is not None)
                for steps in of_scene
            ]
        listed.append(about)
    record = most.evaluation.record
    names = " and ".join(perturbation.name for perturbation in perturbations)
    under = f" under {names}" if names else ""
    return {
        "about": f"{record['scenes']}{under}; {len(listed)} scenes, {most.evaluation.loss.shape[1]} glimpses, "
        f"checkpoint {record['checkpoint']['name']}",
        "metric": most.evaluation.metric,
        "budget": most.evaluation.loss.shape[1],
        "form": form,
        "classes": list(first.view.classes),
        "colours": class_colours(first.view.classes),
        "reading_px": len(_reading(first.view, form)),
        "truth_px": len(_truth(first.view, form)),
        "uncertainty_px": first.uncertainty.shape[-1] if first.uncertainty is not None and unsure else 0,
        "canvas_px": first.view.canvas.shape[0],
        "policies": [{"name": e.label, "about": e.about, "ceiling": e.uses_labels} for e in found],
        "scenes": listed,
    }


def _form(view: EpisodeView) -> str:
    """The form in which a reading is shown: as a "map" of classes, as "bars" of probabilities, or as a "picture"."""
    if is_label_map(view.prediction):
        return "map"
    return "bars" if is_distribution(view) else "picture"


def _reading(view: EpisodeView, form: str) -> NDArray[np.uint8]:
    """[S, S] classes, [S, S, 3] colours, or nothing if bars show it."""
    if form == "map":
        return _labels(view.prediction)
    if form == "bars":
        return _NOTHING
    return _coarse(np.asarray(view.picture.reading(view, READING_PX).convert("RGB")))


def _truth(view: EpisodeView, form: str) -> NDArray[np.uint8]:
    """Like `_reading`, for the truth."""
    if form == "map":
        return _labels(view.truth)
    picture = None if form == "bars" else view.picture.truth(view, READING_PX)
    return _NOTHING if picture is None else _coarse(np.asarray(picture.convert("RGB")))


def _coarse(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (values & LEVELS).astype(np.uint8)


def _labels(labels: NDArray[Any]) -> NDArray[np.uint8]:
    return label_bytes(labels.astype(np.int64), size=min(labels.shape[0], MAP_PX))


def _picture(pixels: NDArray[np.uint8]) -> str:
    size = min(len(pixels), PICTURE_PX)
    small = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))
    return picture_uri(small, format="WEBP", quality=80)


def _warn_where_different(explored: Explored, row: dict[int, int], moments: dict[int, list[Moment]]) -> None:
    recorded = explored.evaluation.scene_score()[list(row.values()), -1]
    last = [steps[-1].view for steps in moments.values()]
    replayed = [view.score_curve[len(view.viewpoints)] for view in last]
    if len(row) and abs(float(np.mean(recorded)) - float(np.mean(replayed))) > SAME_SCORE:
        print(
            f"Warning: taken again, the glimpses of {explored.label!r} score {np.mean(replayed):.3f}, not the recorded "
            f"{np.mean(recorded):.3f}: the record was made with other data or another version.",
            file=sys.stderr,
        )


def script_json(value: Any) -> str:
    """JSON that cannot end a script element or begin a comment, whatever its strings contain."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def explorer_page(data: dict[str, Any]) -> str:
    """The whole file."""
    style = (read_page("page.css") + read_page("explorer.css")).decode()
    script = (read_page("maps.js") + read_page("chart.js") + read_page("explorer.js")).decode()
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escaping.html(f"What policies saw: {data['about']}")
    return Template(read_page("explorer.html").decode()).substitute(
        policy=policy, title=title, style=style, script=script, data=script_json(data)
    )


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def explore(config: ExploreConfig) -> Path:
    """Write the file; returns its path."""
    found = load_records(config.records, names=config.policies)
    data = explorer_data(found, num_scenes=config.num_scenes, root=config.root)
    page = explorer_page(data)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(page, encoding="utf-8")
    size_mb = config.output.stat().st_size / 1e6
    print(f"{config.output}: {len(data['scenes'])} scenes, {len(found)} policies, {size_mb:.1f} MB")
    return config.output


def command_line(arguments: Sequence[str] | None = None) -> None:
    """`canvit-gym explore`."""
    run_command(explore, ExploreConfig, description=__doc__, arguments=arguments, prog=f"{PROGRAM} explore")
