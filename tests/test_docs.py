"""The documentation is true: doctest examples run, and the pages tell every argument with its default."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import ALL_ENV_IDS, small
from datasets import FOLDER_CLASSES, SEGMENTATION_CLASSES, classification_probe, segmentation_probe, tiny

import canvit_gym
from canvit_gym.config import EnvConfig
from canvit_gym.observations import OBSERVATIONS
from canvit_gym.scenes.prepared import DEFAULT_NUM_SCENES
from canvit_gym.vector_env import GlimpseVectorEnv

MODULES = [info.name for info in pkgutil.walk_packages(canvit_gym.__path__, "canvit_gym.")]
PACKAGE = Path(canvit_gym.__file__).parent
WITH_EXAMPLES = {
    ".".join(["canvit_gym", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8") and path.name != "pages.py"  # has those of the pages that it writes
}
PAGE = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Information",
    "Rendering",
    "Arguments",
    "Vectorized environment",
    "Version History",
]
"""Gymnasium's order."""


def page(env_id: str) -> str:
    env = gym.make(env_id, **small(env_id)).unwrapped
    env.close()
    assert env.__doc__ is not None
    return inspect.cleandoc(env.__doc__)


@pytest.fixture
def data_in_place(hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples of data sets on disk want: tiny ones where their users would have theirs, and random models."""
    monkeypatch.setenv("ADE20K_ROOT", str(tiny("ade20k")))
    monkeypatch.setenv("IMAGENET_ROOT", str(tiny("imagenet1k")))
    monkeypatch.chdir(tmp_path)
    for name, kind, probe in (
        ("pets", "image-folder", classification_probe(len(FOLDER_CLASSES))),
        ("land", "segmentation-folder", segmentation_probe(len(SEGMENTATION_CLASSES))),
    ):
        Path(name).symlink_to(tiny(kind))
        Path(f"{name}_probe").symlink_to(probe)
    Path("photos").symlink_to(tiny("image-folder"))


@pytest.mark.parametrize("module", ["canvit_gym", *MODULES])
@pytest.mark.usefixtures("data_in_place")
def test_examples_run(module: str) -> None:
    if module == "canvit_gym.sb3":
        pytest.importorskip("stable_baselines3")
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted > 0 or module not in WITH_EXAMPLES


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
@pytest.mark.usefixtures("data_in_place")
def test_examples_of_pages_run(env_id: str) -> None:
    """doctest.testmod does not find the environments' classes, which are made when they are asked for."""
    examples = doctest.DocTestParser().get_doctest(page(env_id), {}, env_id, None, 0)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples)
    assert result.attempted > 20 and result.failed == 0


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_pages_list_the_spaces_and_the_keys_of_infos(env_id: str) -> None:
    text = page(env_id)
    own = canvit_gym.ENVIRONMENTS[env_id]
    kwargs = {**small(env_id), **{name: own[name] for name in ("reward", "allow_stop", "revisit") if name in own}}
    env = gym.make(env_id, **kwargs)
    _, info = env.reset(seed=0)
    env.close()
    assert f'| "grid" | {env.action_space} |' in text
    table = text.partition("## Information")[2].partition("## Rendering")[0]
    assert sorted(re.findall(r'^\| "(\w+)" \|', table, flags=re.MULTILINE)) == sorted(info)


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_pages_are_in_gymnasiums_order(env_id: str) -> None:
    assert re.findall(r"^## (.*)$", page(env_id), flags=re.MULTILINE) == PAGE


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_prose_is_filled_without_gaps(env_id: str) -> None:
    lines = page(env_id).splitlines()
    prose = [line for line in lines if not line.startswith(("|", ">>>", "...", "    "))]  # tables, examples, files
    assert len(prose) > 50 and not [line for line in prose if "  " in line.strip()]
    assert max(len(line) for line in prose) <= 112


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_every_part_of_a_page_has_an_example_or_a_table(env_id: str) -> None:
    sections = re.split(r"^## .*$", page(env_id), flags=re.MULTILINE)[1:]
    for title, text in zip(PAGE, sections, strict=True):
        assert ">>>" in text or title in ("Arguments", "Version History"), title


@pytest.mark.parametrize("env_id", ALL_ENV_IDS)
def test_pages_tell_every_argument_and_its_default(env_id: str) -> None:
    """A page's Arguments and EnvConfig cannot drift apart."""
    text = page(env_id).partition("## Arguments")[2].partition("## Vectorized")[0]
    told = " ".join(text.split())
    own = canvit_gym.ENVIRONMENTS[env_id]
    for field in fields(EnvConfig):
        assert f"`{field.name}`" in told, f"{env_id} does not tell {field.name}"
        default = own.get(field.name, field.default)
        written = f'"{default}"' if isinstance(default, str) else re.sub("'", '"', str(default))
        start = told.index(f"`{field.name}`")
        assert written in told[start : start + 420], f"{env_id}: the default of {field.name} is {written}"
    if "Fashion" in env_id:
        assert ", ".join(str(n) for n in DEFAULT_NUM_SCENES.values()).replace(", 1000", " or 1000") in told


@pytest.mark.parametrize("env_id", ["CanViT/FashionSegmentation-v0", "CanViT/FashionClassification-v0"])
def test_pages_tell_the_shape_and_range_of_every_observation(env_id: str) -> None:
    every = [key for key in OBSERVATIONS if key not in ("goal", "reading")]  # their sizes follow from the classes
    with gym.make(env_id, num_scenes=4, device="cpu", observations=every) as env:
        space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    for key, box in space.items():
        assert isinstance(box, gym.spaces.Box)
        row = re.search(rf'^\| "{key}" \| ([^|]*?) \| (\[.*?\]) \|', page(env_id), flags=re.MULTILINE)
        assert row is not None and row[1].removesuffix(", uint8") == str(box.shape)
        assert row[2] == f"[{box.low.min():g}, {box.high.max():g}]"


def test_the_ranges_of_a_page_are_those_of_its_checkpoint() -> None:
    told = page("CanViT/ADE20K-v0")
    assert '"canvas" | (1024, 8, 8) | [-32, 32]' in told and '"cls" | (768,) | [-28, 28]' in told


def test_pages_tell_nothing_that_is_no_argument() -> None:
    known = {field.name for field in fields(EnvConfig)} | {"render_mode", "autoreset_mode"}
    for env_id in ALL_ENV_IDS:
        arguments = page(env_id).partition("## Arguments")[2].partition("Every argument")[0]
        assert set(re.findall(r"`(\w+)`", arguments)) <= known


def test_the_vector_page_tells_every_argument() -> None:
    assert GlimpseVectorEnv.__doc__ is not None
    for field in fields(EnvConfig):
        assert f"`{field.name}" in GlimpseVectorEnv.__doc__, field.name


def test_the_vector_page_says_how_to_see_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert GlimpseVectorEnv.__doc__ is not None
    command = re.search(r"`(from canvit_gym\.env import .*?)`", GlimpseVectorEnv.__doc__)
    assert command is not None
    exec(command[1], {})
    shown = capsys.readouterr().out
    assert all(f"## {title}" in shown for title in PAGE) and "(default)" in shown


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8").strip()
    assert not source or ast.get_docstring(ast.parse(source))
