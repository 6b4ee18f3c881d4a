"""Generate pages from the code while the site is built: one per environment, with an animated episode and the committed
baseline numbers.

mkdocs-gen-files runs this (`make docs`). It needs no data beyond the package, so environments on disk have no
animation.
"""

import io
import re
from inspect import cleandoc
from pathlib import Path

import mkdocs_gen_files
from PIL import Image

import canvit_gym.env
from canvit_gym.config import config_from_kwargs
from canvit_gym.evaluation import record_views
from canvit_gym.perturbations import perturbations_table
from canvit_gym.policies import make_policy, policies_table
from canvit_gym.rendering import draw_frame
from canvit_gym.scenes.datasets import DATASETS, DatasetSpec
from canvit_gym.suite.plan import skills_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
DEFAULT_WINDOWS = """\
Where `scale` and `centers` are `None`, windows have the environment's `grid_scales` and `grid_centers`; with
`revisit=False` they are its viewpoints."""
ANIMATED_SCENES = 2
PANEL_PX = 128


def fenced(docstring: str) -> str:
    """The docstring with its examples in Python code blocks."""
    blocks = cleandoc(docstring).split("\n\n")
    return "\n\n".join(f"```pycon\n{block}\n```" if block.startswith(">>>") else block for block in blocks)


def animation(spec: DatasetSpec) -> bytes:
    """A GIF of random glimpses in two validation scenes."""
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
    """The results of the committed headroom study on this environment, if there are any."""
    path = RESULTS / "suite_headroom" / f"{spec.env_id.rpartition('/')[2]}.md"
    if not path.is_file():
        return ""
    _, _, text = path.read_text(encoding="utf-8").partition("\n\n")
    return f"\n## Baseline numbers\n\nWritten by `python -m experiments.studies.suite_headroom`.\n\n{text}"


def main() -> None:
    table = ["# Environments\n", "| environment | task |", "| --- | --- |"]
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
    for picture in (*RESULTS.rglob("*.png"), *RESULTS.rglob("*.svg")):
        with mkdocs_gen_files.open(f"results/{picture.relative_to(RESULTS)}", "wb") as file:
            file.write(picture.read_bytes())
    card = (ROOT / "canvit_gym" / "assets" / "nano" / "README.md").read_text(encoding="utf-8")
    with mkdocs_gen_files.open("nano.md", "w") as file:
        file.write(card)
    trained = ROOT / "agents" / "trained"
    for page, source in (("trained.md", "README.md"), ("learning.svg", "learning.svg")):
        with mkdocs_gen_files.open(page, "w") as file:
            file.write((trained / source).read_text(encoding="utf-8"))
    with mkdocs_gen_files.open("policies.md", "w") as file:
        file.write(f"# Hand-coded policies\n\n{DEFAULT_WINDOWS}\n\n{policies_table()}\n")
    suite = (ROOT / "docs" / "suite.md").read_text(encoding="utf-8")
    for marker, text in (("skills", skills_table()), ("perturbations", perturbations_table())):
        assert f"<!-- {marker} -->" in suite, marker
        suite = suite.replace(f"<!-- {marker} -->", text)
    with mkdocs_gen_files.open("suite.md", "w") as file:
        file.write(suite)
    with mkdocs_gen_files.open("environments/index.md", "w") as file:
        file.write("\n".join(table) + "\n")


main()
