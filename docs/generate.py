"""Pages that follow from the code, written while the site is built: one per environment, with an episode as an
animation and the committed baseline numbers.

Run by mkdocs-gen-files (`make docs`). Needs nothing that is not in the package: environments on disk have no animation.
"""

import io
import json
import re
from inspect import cleandoc
from pathlib import Path
from typing import Any

import mkdocs_gen_files
from PIL import Image

import canvit_gym.env
from canvit_gym.config import config_from_kwargs
from canvit_gym.evaluation import record_views
from canvit_gym.policies import make_policy
from canvit_gym.rendering import draw_frame
from canvit_gym.scenes.datasets import DATASETS, DatasetSpec

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
ANIMATED_SCENES = 2
PANEL_PX = 128


def fenced(docstring: str) -> str:
    """A docstring's examples as Python blocks, so that Markdown shows them as code."""
    blocks = cleandoc(docstring).split("\n\n")
    return "\n\n".join(f"```pycon\n{block}\n```" if block.startswith(">>>") else block for block in blocks)


def animation(spec: DatasetSpec) -> bytes:
    """A GIF of two validation scenes seen by a hand-coded policy of the paper."""
    config = config_from_kwargs({**spec.kwargs, "split": "validation", "num_scenes": ANIMATED_SCENES})
    policy = make_policy("random", config=config, num_glimpses=config.budget)
    frames = [
        Image.fromarray(draw_frame(view, size=PANEL_PX)).quantize(64)
        for views in record_views(policy, config=config, rows=list(range(ANIMATED_SCENES)))  # pyright: ignore
        for view in views
    ]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=700, loop=0)
    return buffer.getvalue()


def baselines(spec: DatasetSpec) -> str:
    """The table of the committed headroom study, if there is one."""
    path = RESULTS / "headroom" / f"{spec.env_id.rpartition('/')[2]}.json"
    if not path.is_file():
        return ""
    study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [f"| policy | {study['metric']} % after the last glimpse |", "| --- | --- |"]
    for name, found in study["policies"].items():
        if found["num_scenes"] == study["num_scenes"]:
            score = found["score"]
            value, low, high = (100 * score[key] for key in ("value", "low", "high"))
            rows.append(f"| {name} | {value:.1f} [{low:.1f}, {high:.1f}] |")
    command = study["provenance"]["command"]
    return (
        f"\n## Baseline numbers\n\n{study['num_scenes']} test scenes, 95 % intervals.\n\n"
        + "\n".join(rows)
        + f"\n\nWritten by:\n\n```sh\n{command}\n```\n"
    )


def main() -> None:
    table = ["# Environments\n", "| environment | what is asked |", "| --- | --- |"]
    for spec in DATASETS.values():
        name = re.sub(r"\W", "-", spec.env_id.rpartition("/")[2])
        table.append(f"| [`{spec.env_id}`]({name}.md) | {spec.page.headline} |")
        page = fenced(getattr(canvit_gym.env, spec.class_name).__doc__)
        picture = ""
        if spec.on_disk is None:
            with mkdocs_gen_files.open(f"environments/{name}.gif", "wb") as file:
                file.write(animation(spec))
            picture = f"![Two episodes of {spec.env_id}]({name}.gif)\n\n"
        with mkdocs_gen_files.open(f"environments/{name}.md", "w") as file:
            file.write(f"# {spec.env_id}\n\n{picture}{page}\n{baselines(spec)}")
    for picture in RESULTS.rglob("*.png"):
        with mkdocs_gen_files.open(f"results/{picture.relative_to(RESULTS)}", "wb") as file:
            file.write(picture.read_bytes())
    card = (ROOT / "canvit_gym" / "assets" / "nano" / "README.md").read_text(encoding="utf-8")
    with mkdocs_gen_files.open("nano.md", "w") as file:
        file.write(card)
    with mkdocs_gen_files.open("environments/index.md", "w") as file:
        file.write("\n".join(table) + "\n")


main()
