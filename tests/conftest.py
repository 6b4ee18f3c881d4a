"""Shared by all tests: one CPU thread, also in child processes (results do not depend on the machine's cores, and tests
beside each other do not wait for its cores), and small environments."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from datasets import FOLDER_CLASSES, SEGMENTATION_CLASSES, classification_probe, segmentation_probe, tiny
from hub import hub_root  # noqa: F401  (a fixture)
from safetensors.torch import load_file

import canvit_gym
from canvit_gym.assembly import build_backbone
from canvit_gym.config import EnvConfig
from canvit_gym.vector_env import GlimpseVectorEnv

os.environ.setdefault("OMP_NUM_THREADS", "1")
OWN_CACHE = str(Path(__file__).parents[1] / ".cache")
os.environ.setdefault("CANVIT_GYM_CACHE", OWN_CACHE)  # not the user's own

ALL_ENV_IDS = list(canvit_gym.ENVIRONMENTS)
ENV_IDS = [env_id for env_id in ALL_ENV_IDS if "Fashion" in env_id]
"""Those whose scenes ship with the package: what does not depend on the data set is tested on them."""
TASK_IDS = [f"CanViT/Fashion{name}-v0" for name in ("Segmentation", "Classification", "Search")]
"""One id per task: `small` leaves the others of a task little but their pixels."""


def each_id_with(*variants: Sequence[Any]) -> list[tuple[Any, ...]]:
    """(id, one of each of the variants): all of them for one id per task, and for the other ids the first ones."""
    firsts = tuple(options[0] for options in variants)
    return [case for case in product(ENV_IDS, *variants) if case[0] in TASK_IDS or case[1:] == firsts]


SMALL: dict[str, Any] = {"num_scenes": 16, "device": "cpu", "budget": 5}
"""Sixteen scenes are prepared in a few hundredths of a second; budgets of ids differ, tests count on this one."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Search fixed sequences anew, in case the search has changed: what is kept is named after all but its code."""
    if not hasattr(session.config, "workerinput") and os.environ["CANVIT_GYM_CACHE"] == OWN_CACHE:
        shutil.rmtree(Path(OWN_CACHE) / "fixed_sequences", ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def heed_interrupts() -> None:
    """For a child process (`preexec_fn`): a shell's background jobs, and so their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of the object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def assert_same_policies(one: Path, other: Path, *, names: tuple[str, ...] = ("last", "best")) -> None:
    """The policies of two runs have the same weights, bit for bit."""
    for name in names:
        ours, theirs = (load_file(run / name / "policy.safetensors") for run in (one, other))
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def small(env_id: str) -> dict[str, Any]:
    """Arguments that make any id on few scenes: for data sets on disk tiny ones, nano, and a random probe."""
    kind = canvit_gym.ENVIRONMENTS[env_id]["dataset"]
    match kind:
        case "unlabelled-folder":
            root = str(tiny("image-folder"))  # whose classes are just folders here
            return {**SMALL, "num_scenes": 5, "root": root, "checkpoint": "nano", "workers": 0}
        case "ade20k":
            probe = segmentation_probe(150)
        case "imagenet1k":
            probe = classification_probe(1000)
        case "image-folder":
            probe = classification_probe(len(FOLDER_CLASSES))
        case "segmentation-folder":
            probe = segmentation_probe(len(SEGMENTATION_CLASSES))
        case _:
            plain = {"budget": 5, "revisit": True, "allow_stop": False, "glimpse_cost": 0.0, "reward": "loss_reduction"}
            return {**SMALL, **plain}  # whatever the id has: their own are tested by themselves
    on_disk = {"root": str(tiny(kind)), "checkpoint": "nano", "probe": str(probe), "workers": 0}
    return {**SMALL, "num_scenes": 5, **on_disk}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_vec() -> Iterator[Callable[..., GlimpseVectorEnv]]:
    """GlimpseVectorEnv of an id (default: segmentation) on few scenes; closed after the test."""
    made: list[GlimpseVectorEnv] = []

    def make(num_envs: int = 4, env_id: str = ENV_IDS[0], **kwargs: Any) -> GlimpseVectorEnv:
        merged = {**canvit_gym.ENVIRONMENTS[env_id], **small(env_id), **kwargs}
        made.append(GlimpseVectorEnv(num_envs, **merged))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


@pytest.fixture
def make_one() -> Iterator[Callable[..., gym.Env[Any, Any]]]:
    """gym.make of an id on few scenes; closed after the test."""
    made: list[gym.Env[Any, Any]] = []

    def make(env_id: str = ENV_IDS[0], **kwargs: Any) -> gym.Env[Any, Any]:
        made.append(gym.make(env_id, **{**small(env_id), **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def backbone():
    return build_backbone(EnvConfig(device="cpu"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene cache with nothing in it."""
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
