"""Bad input raises an error that names the value and the cure: a table of calls, exceptions and messages."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from canvit_pytorch import SegmentationProbe
from conftest import ENV_IDS, SMALL, edit_json
from datasets import tiny
from safetensors.torch import load_file, save_file

from canvit_gym.actions import ContinuousActions, DiscreteActions, grid_viewpoints
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.load import load_backbone
from canvit_gym.config import EnvConfig
from canvit_gym.env import GlimpseEnv
from canvit_gym.play.explore import load_records
from canvit_gym.policies.locator import BoxLocator
from canvit_gym.sb3 import GlimpseVecEnv
from canvit_gym.scenes.fashion import generate_scene
from canvit_gym.scenes.prepared import FashionScenes
from canvit_gym.scenes.sampler import SceneSampler
from canvit_gym.statistics import OverRuns
from canvit_gym.tasks import metric_named
from canvit_gym.vector_env import GlimpseVectorEnv

Case = tuple[Callable[[], object], type[Exception], str]


def make(num_envs: Any = 2, **kwargs: Any) -> GlimpseVectorEnv:
    return GlimpseVectorEnv(num_envs, **{**SMALL, **kwargs})


def ready(num_envs: int = 2, **kwargs: Any) -> GlimpseVectorEnv:
    envs = make(num_envs, **kwargs)
    envs.reset(seed=0)
    return envs


def stepped(actions: Any, **kwargs: Any) -> Callable[[], object]:
    return lambda: ready(**kwargs).step(actions)


def reset(options: Any, num_envs: int = 2, **kwargs: Any) -> Callable[[], object]:
    return lambda: ready(num_envs, **kwargs).reset(options=options)


def closed() -> GlimpseVectorEnv:
    envs = ready()
    envs.close()
    return envs


def single(**kwargs: Any) -> GlimpseEnv:
    env = GlimpseEnv(**{**SMALL, **kwargs})
    env.reset(seed=0)
    return env


def ended_single() -> GlimpseEnv:
    env = single(budget=2)
    env.step(0)
    return env


def ended_disabled() -> GlimpseVectorEnv:
    envs = ready(budget=2, autoreset_mode="disabled")
    envs.step([0, 0])
    return envs


CONTINUOUS = {"action": "continuous"}
NAN = float("nan")

CONSTRUCTOR: dict[str, Case] = {
    "unknown keyword": (lambda: make(buget=5), TypeError, "unknown environment keyword buget; there are: .*budget"),
    "unknown keyword, single": (lambda: single(grid_scale=1), TypeError, "unknown environment keyword grid_scale"),
    "no environments": (lambda: make(0), ValueError, r"num_envs must be an integer >= 1, got 0"),
    "half an environment": (lambda: make(1.5), ValueError, r"num_envs must be an integer >= 1, got 1\.5"),
    "true environments": (lambda: make(True), ValueError, r"num_envs must be an integer >= 1, got True"),
    "dataset": (lambda: make(dataset="imagenet"), ValueError, "unknown dataset 'imagenet'; choose one of fashion-seg"),
    "split": (
        lambda: make(split="train"),
        ValueError,
        "unknown split 'train' of fashion-segmentation; choose one of training, validation, test$",
    ),
    "split of another data set": (
        lambda: make(split="tuning"),
        ValueError,
        "unknown split 'tuning' of fashion-segmentation; choose one of training, validation, test$",
    ),
    "root before checkpoint": (
        lambda: make(dataset="ade20k", root="/no/such", checkpoint="/none"),
        FileNotFoundError,
        "root='/no/such' is not a directory",
    ),
    "probe of the other task": (
        lambda: make(probe="nano-classification-probe"),
        ValueError,
        "'nano-classification-probe' is a classification probe, but the task is segmentation: leave probe out",
    ),
    "probe of the other task, released": (
        lambda: make(probe="dinov3-vitb16-in1k"),
        ValueError,
        "'dinov3-vitb16-in1k' is a classification probe",
    ),
    "num_scenes zero": (lambda: make(num_scenes=0), ValueError, "num_scenes must be an integer >= 1, got 0"),
    "num_scenes string": (lambda: make(num_scenes="16"), ValueError, "num_scenes must be an integer >= .* got '16'"),
    "budget zero": (lambda: make(budget=0), ValueError, "budget must be an integer >= 1, got 0"),
    "budget float": (lambda: make(budget=5.0), ValueError, r"budget must be an integer >= .* got 5\.0"),
    "budget spent at once": (lambda: make(budget=1), ValueError, "use budget >= 2 or first_glimpse=None"),
    "shard outside": (lambda: make(shard=(2, 2)), ValueError, r"shard must be \(i, n\).* got \(2, 2\)"),
    "shard one number": (lambda: make(shard=3), ValueError, r"shard must be \(i, n\).* got 3"),
    "shard empty": (lambda: make(shard=(19, 20)), ValueError, "shard .19, 20. of 16 scenes is empty; use at most 16"),
    "first_glimpse name": (lambda: make(first_glimpse="centre"), ValueError, "'full', 'random', None .* got 'centre'"),
    "first_glimpse outside": (
        lambda: make(first_glimpse=(0.9, 0, 0.5)),
        ValueError,
        r"\(0.9, 0, 0.5\) does not lie inside .* at most 1 - scale",
    ),
    "first_glimpse NaN": (lambda: make(first_glimpse=(NAN, 0, 0.5)), ValueError, "nan.* does not lie inside the scene"),
    "first_glimpse NaN column": (lambda: make(first_glimpse=(0, NAN, 0.5)), ValueError, "nan.* does not lie inside"),
    "first_glimpse vanishing": (
        lambda: make(first_glimpse=(0, 0, 1e-60)),
        ValueError,
        r"scale must be in \[0.001, 1\]",
    ),
    "first_glimpse words": (lambda: make(first_glimpse=("a", 0, 1)), ValueError, r"or \(row, col, scale\), got \('a'"),
    "action kind": (lambda: make(action="discrete"), ValueError, "unknown action 'discrete'; choose one of grid, "),
    "min_scale zero": (lambda: make(min_scale=0.0), ValueError, r"min_scale must lie in \[0\.001, 1\), got 0\.0"),
    "min_scale vanishing": (lambda: make(min_scale=1e-60), ValueError, "min_scale must lie in .*, got 1e-60"),
    "min_scale text": (lambda: make(min_scale="small"), ValueError, "min_scale must be a number, got 'small'"),
    "grid_scales above one": (
        lambda: make(grid_scales=(2,)),
        ValueError,
        r"distinct numbers in \[0.001, 1\], got \(2,\)",
    ),
    "grid_scales vanishing": (lambda: make(grid_scales=(1e-50,)), ValueError, r"distinct numbers .* got \(1e-50,\)"),
    "grid_scales twice": (lambda: make(grid_scales=(0.5, 0.5)), ValueError, r"distinct numbers .* got \(0.5, 0.5\)"),
    "grid_scales a number": (
        lambda: make(grid_scales=0.5),
        ValueError,
        "grid_scales must be a list of numbers, got 0.5",
    ),
    "num_scenes beyond the disk": (
        lambda: make(num_scenes=10**12),
        OSError,
        "cannot prepare .*: 1000000000000 scenes take .* MiB, but only .* MiB are free",
    ),
    "grid_centers huge": (lambda: make(grid_centers=10**6), ValueError, r"grid_centers must lie in \[1, 512\], got"),
    "grid_centers": (lambda: make(grid_centers=0), ValueError, "grid_centers must be an integer >= .* got 0"),
    "quadtree_levels": (lambda: make(quadtree_levels=7), ValueError, r"quadtree_levels must lie in \[0, 6\], got 7"),
    "allow_stop": (lambda: make(allow_stop="no"), ValueError, "allow_stop must be True or False, got 'no'"),
    "glimpse_cost negative": (
        lambda: make(glimpse_cost=-1),
        ValueError,
        "glimpse_cost must be a finite number >= 0, got -1",
    ),
    "glimpse_cost NaN": (lambda: make(glimpse_cost=NAN), ValueError, "finite number >= 0, got nan"),
    "reward": (lambda: make(reward="accuracy"), ValueError, "unknown reward 'accuracy'; choose one of loss_reduction"),
    "reward a list": (lambda: make(reward=["score_gain"]), ValueError, r"unknown reward \['score_gain'\]"),
    "observation key": (
        lambda: make(observations=["canvas", "labels"]),
        ValueError,
        "among canvas, .* got .*'labels'",
    ),
    "observation a list": (lambda: make(observations=[["cls"]]), ValueError, r"distinct keys .* got \[\['cls'\]\]"),
    "observation twice": (lambda: make(observations=["cls", "cls"]), ValueError, "must be distinct keys .* got"),
    "no observation": (lambda: make(observations=[]), ValueError, r"at least one; got \[\]"),
    "observations a word": (lambda: make(observations="canvas"), ValueError, "must be a list of keys, got 'canvas'"),
    "canvas_size": (lambda: make(canvas_size=17), ValueError, r"canvas_size must lie in \[1, 16\].* got 17"),
    "canvas_size zero": (lambda: make(canvas_size=0), ValueError, "canvas_size must be an integer >= .* got 0"),
    "map_size zero": (lambda: make(map_size=0), ValueError, "map_size must be an integer >= 1, got 0"),
    "map_size": (lambda: make(map_size=32), ValueError, r"map_size must lie in \[1, 16\].* got 32"),
    "observation_dtype": (lambda: make(observation_dtype="float64"), ValueError, "float32, float16"),
    "precision": (lambda: make(precision="float16"), ValueError, "unknown precision 'float16'; choose one of float32"),
    "device": (lambda: make(device="gpu"), ValueError, "'gpu'.*'cpu'"),
    "device meta": (lambda: make(device="meta"), ValueError, "device 'meta' is not supported; use 'cpu'"),
    "probe empty": (lambda: make(probe=""), ValueError, "probe must not be empty: leave it out for the default"),
    "checkpoint type": (lambda: make(checkpoint=Path("x")), ValueError, "checkpoint must be a string.* got .*Path"),
    "checkpoint name": (lambda: make(checkpoint="huge"), FileNotFoundError, "'huge' is neither 'nano', 'flagship'"),
    "checkpoint path": (
        lambda: make(checkpoint="/no/such"),
        FileNotFoundError,
        "'/no/such' is neither .* existing dir",
    ),
    "probe path": (lambda: make(probe="/no/such"), FileNotFoundError, "'/no/such' is neither"),
    "probe of nobody": (
        lambda: make(probe="~no-such-user/x"),
        FileNotFoundError,
        "probe='~no-such-user/x': there is no home directory",
    ),
    "checkpoint of nobody": (
        lambda: make(checkpoint="~no-such-user/x"),
        FileNotFoundError,
        "checkpoint='~no-such-user/x': there is no home directory; use a path without ~",
    ),
    "cache of nobody": (
        lambda: gym.make_vec("CanViT/ImageFolder-v0", root=str(tiny("image-folder")), cache="~no-such-user/x"),
        FileNotFoundError,
        "cache='~no-such-user/x': there is no home directory",
    ),
    "autoreset_mode": (
        lambda: make(autoreset_mode="always"),
        ValueError,
        "unknown autoreset_mode 'always'; .* same_step",
    ),
    "autoreset_mode, single": (
        lambda: single(autoreset_mode="next_step"),
        TypeError,
        "autoreset_mode: only for vector .*make_vec",
    ),
    "num_envs, single": (
        lambda: single(num_envs=2),
        TypeError,
        "num_envs: only for vector environments; use .*make_vec",
    ),
    "render_mode": (
        lambda: make(render_mode="ansi"),
        ValueError,
        "unknown render_mode 'ansi'; choose one of .*rgb_array",
    ),
}

RESET: dict[str, Case] = {
    "unknown option": (
        reset({"scenes": 3}),
        ValueError,
        "unknown reset option scenes; there are: scene, goal, reset_mask",
    ),
    "options no dict": (reset(["scene"]), TypeError, r"options must be a dict .* got \['scene'\]"),
    "scene out of range": (reset({"scene": 16}), ValueError, r"must lie in \[0, 15\], got 16"),
    "scene negative": (reset({"scene": [0, -1]}), ValueError, r"must lie in \[0, 15\], got \[0, -1\]"),
    "scene float": (reset({"scene": 1.0}), ValueError, r"one scene index or 2 of them, got 1\.0"),
    "too many scenes": (reset({"scene": [1, 2, 3]}), ValueError, r"one scene index or 2 of them, got \[1, 2, 3\]"),
    "ragged scenes": (reset({"scene": [[1], [2, 3]]}), ValueError, "one scene index or 2 of them"),
    "scene None": (reset({"scene": None}), ValueError, "one scene index or 2 of them, got None"),
    "mask of integers": (reset({"reset_mask": [1, 0]}), ValueError, "must be 2 booleans.* got int64"),
    "mask of nothing": (reset({"reset_mask": np.zeros(2, dtype=bool)}), ValueError, "at least one true; got"),
    "mask too long": (reset({"reset_mask": np.ones(3, dtype=bool)}), ValueError, r"must be 2 booleans.* shape \(3,\)"),
    "mask before the first reset": (
        lambda: make().reset(options={"reset_mask": np.array([True, False])}),
        RuntimeError,
        r"leaves out environments \[1\], which have not been reset yet: call reset\(\) without it",
    ),
    "mask, single": (
        lambda: single().reset(options={"reset_mask": [True]}),
        ValueError,
        "only exists in vector environments",
    ),
    "scene out of range, single": (lambda: single().reset(options={"scene": 99}), ValueError, r"\[0, 15\], got 99"),
    "negative seed": (lambda: make().reset(seed=-1), gym.error.Error, "-1"),
    "closed": (lambda: closed().reset(), RuntimeError, "closed; make a new one"),
}

STEP: dict[str, Case] = {
    "before reset": (lambda: make().step([0, 0]), RuntimeError, r"no scene yet: call reset\(\) first"),
    "before reset, single": (lambda: GlimpseEnv(**SMALL).step(0), RuntimeError, r"no scene yet: call reset\(\) first"),
    "closed": (lambda: closed().step([0, 0]), RuntimeError, "closed; make a new one"),
    "too few": (stepped([0]), ValueError, r"must have shape \(2,\).* got \(1,\)\. .*action_space.sample"),
    "one number": (stepped(0), ValueError, r"must have shape \(2,\).* got \(\)"),
    "out of range": (stepped([0, 512]), ValueError, r"environment 1 is 512, but must be an integer in \[0, 511\]"),
    "negative": (stepped([-1, 0]), ValueError, "environment 0 is -1, but must be an integer"),
    "floats": (stepped([0.0, 1.0]), TypeError, r"must be integers, got dtype float64: .*0\., 1\."),
    "NaN as an index": (stepped([NAN, 0]), TypeError, "must be integers.*nan"),
    "nothing": (stepped([None, None]), TypeError, "must be integers, got dtype object"),
    "booleans": (stepped([True, False]), TypeError, "must be integers, got dtype bool"),
    "stop where there is none": (stepped([21, 0], action="quadtree"), ValueError, r"is 21, but .* \[0, 20\]"),
    "NaN": (stepped(np.full((2, 3), NAN), **CONTINUOUS), ValueError, r"0 is \[nan nan nan\], but must be finite"),
    "infinity": (stepped([[0, 0, np.inf], [0, 0, 0]], **CONTINUOUS), ValueError, "inf.* must be finite and in"),
    "outside the box": (stepped([[0, 0, 0], [0, 1.5, 0]], **CONTINUOUS), ValueError, "1 is .*1.5.* clip or squash"),
    "misshapen": (stepped(np.zeros((2, 4)), **CONTINUOUS), ValueError, r"shape \(2, 3\).* got \(2, 4\)"),
    "no stop flag": (stepped(np.zeros((2, 3)), allow_stop=True, **CONTINUOUS), ValueError, r"shape \(2, 4\)"),
    "ragged": (stepped([[0, 0, 0], [0, 0]], **CONTINUOUS), ValueError, r"one array of shape \(2, 3\), got \[\[0, 0"),
    "words": (stepped([["a"] * 3] * 2, **CONTINUOUS), TypeError, "must be numbers, got dtype <U1"),
    "misshapen, single": (lambda: single().step([1, 2]), ValueError, r"has shape \(\), got \(2,\): \[1, 2\]"),
    "ragged, single": (lambda: single(**CONTINUOUS).step([[1], [2, 3]]), ValueError, r"one array, got \[\[1\]"),
    "out of range, single": (lambda: single().step(512), ValueError, r"512, but must be an integer in \[0, 511\]"),
    "ended, disabled": (lambda: ended_disabled().step([0, 0]), RuntimeError, r"\[0, 1\] have ended: .*reset_mask"),
    "ended, single": (lambda: ended_single().step(0), RuntimeError, r"has ended: call reset\(\) to begin the next"),
}

OTHERS: dict[str, Case] = {
    "render without a mode": (lambda: ready().render(), ValueError, 'render_mode="rgb_array"'),
    "render before reset": (
        lambda: make(render_mode="rgb_array").render(),
        RuntimeError,
        r"no scene yet: call reset\(\) first",
    ),
    "state before reset": (lambda: make().state, RuntimeError, r"no scene yet: call reset\(\) first"),
    "state when closed": (lambda: closed().state, RuntimeError, "closed; make a new one"),
    "tensors when closed": (lambda: closed().observation_tensors(), RuntimeError, "closed; make a new one"),
    "view when closed": (lambda: closed().view(0), RuntimeError, "closed; make a new one"),
    "encode outside": (
        lambda: ContinuousActions().encode(np.array([[0.0, 0.9, 0.5]])),
        ValueError,
        r"viewpoint 0, .*0.9.* does not lie inside the scene: scale must be",
    ),
    "encode NaN": (
        lambda: DiscreteActions(grid_viewpoints(scales=(0.5,), centers=2)).encode(np.full((1, 3), NAN)),
        ValueError,
        "nan.* does not lie inside the scene",
    ),
    "encode one viewpoint": (lambda: ContinuousActions().encode(np.zeros(3)), ValueError, r"\[N, 3\].* got .*\(3,\)"),
    "scene index": (lambda: generate_scene("segmentation", "test", -1), ValueError, r"\[0, 2\^63\), got -1"),
    "scenes of no split": (
        lambda: FashionScenes("segmentation", "train", 4),  # pyright: ignore[reportArgumentType]
        ValueError,
        "unknown split 'train'; choose one of training",
    ),
    "scenes of no flavour": (
        lambda: FashionScenes("detection", "test", 4),  # pyright: ignore[reportArgumentType]
        ValueError,
        "unknown flavour 'detection'; choose one of segmentation",
    ),
    "no scenes": (
        lambda: FashionScenes("segmentation", "test", 0),
        ValueError,
        "num_scenes must be an integer >= 1, got 0",
    ),
    "scenes before the first": (
        lambda: FashionScenes("segmentation", "test", 4, first=-1),
        ValueError,
        "first must be an integer >= 0, got -1",
    ),
    "order of no shard": (
        lambda: SceneSampler(num_scenes=4, shard=(0, 0), shuffle=True),
        ValueError,
        r"shard must be \(i, n\)",
    ),
    "reward": (lambda: EnvConfig(reward="iou"), ValueError, "unknown reward 'iou'"),
    "metric": (lambda: metric_named("F1"), ValueError, "unknown metric 'F1': .* have mIoU, .*first import the module"),
    "windows without a size": (lambda: BoxLocator(factor=0), ValueError, "factor must be above 0: a glimpse has a"),
    "statistic of no runs": (lambda: OverRuns([]), ValueError, "runs must be statistics of one run each"),
    "nothing to explore": (lambda: load_records([]), ValueError, "no record given: name the directory of a benchmark"),
    "a benchmark's file to explore": (
        lambda: load_records([Path("runs/benchmark/benchmark.json")]),
        ValueError,
        "benchmark.json is one file of a benchmark: name its directory, runs/benchmark",
    ),
    "tensors through a wrapper": (
        lambda: GlimpseVecEnv(
            gym.wrappers.vector.RecordEpisodeStatistics(make(autoreset_mode="same_step")), tensors="float32"
        ),
        ValueError,
        "wrappers work on arrays: leave tensors out",
    ),
    "unknown id": (lambda: gym.make("CanViT/FashionDetection-v0"), gym.error.NameNotFound, "FashionDetection"),
    "unknown version": (lambda: gym.make("CanViT/FashionSegmentation-v9"), gym.error.VersionNotFound, "v0"),
    "precision": (
        lambda: load_backbone(precision="int8"),  # pyright: ignore[reportArgumentType]
        ValueError,
        "unknown precision 'int8'",
    ),
}

TABLE = {
    f"{group}: {name}": case
    for group, cases in (("make", CONSTRUCTOR), ("reset", RESET), ("step", STEP), ("other", OTHERS))
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_named_and_cured(name: str) -> None:
    call, exception, message = TABLE[name]
    with pytest.raises(exception, match=f"(?s){message}"):
        call()


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_gym_make_passes_the_message_on(env_id: str) -> None:
    with pytest.raises(ValueError, match="unknown split 'train' of fashion"):
        gym.make(env_id, split="train", **SMALL)


def test_cuda_without_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=r"'cuda': PyTorch sees no CUDA device. Use device='cpu'"):
        make(device="cuda")


# Broken checkpoints and probes, made from the shipped ones ------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an asset's directory."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(asset_dir(name), tmp_path / name))

    return copy


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_file(copied: Callable[[str], Path], file: str) -> None:
    directory = copied("nano")
    (directory / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"(?s){directory} has no {file}.*save_pretrained"):
        make(checkpoint=str(directory))


def test_a_checkpoint_whose_weights_do_not_fit_its_config(copied: Callable[[str], Path]) -> None:
    directory = copied("nano")
    config = json.loads((directory / "config.json").read_text())
    edit_json(directory / "config.json", teacher_dim=config["teacher_dim"] + 1)
    with pytest.raises(ValueError, match=rf"(?s){directory}.*is not a CanViTForPretraining.*another checkpoint"):
        make(checkpoint=str(directory))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_checkpoint_whose_config_is_no_config(copied: Callable[[str], Path], content: str) -> None:
    directory = copied("nano")
    (directory / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"(?s){directory}.*is not a CanViTForPretraining"):
        make(checkpoint=str(directory))


@pytest.mark.parametrize("name", ["nano", "nano-segmentation-probe", "nano-classification-probe"])
def test_weights_cut_short(copied: Callable[[str], Path], name: str) -> None:
    directory = copied(name)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    kind = "classification" if "classification" in name else "segmentation"
    keyword = "probe" if "probe" in name else "checkpoint"
    with pytest.raises(ValueError, match=rf"(?s){keyword} .*{directory}"):
        make(dataset=f"fashion-{kind}", **{keyword: str(directory)})


def test_a_checkpoint_of_another_architecture(copied: Callable[[str], Path]) -> None:
    directory = copied("nano")
    config = json.loads((directory / "config.json").read_text())
    edit_json(directory / "config.json", canvit_config={**config["canvit_config"], "backbone_name": "vit_unheard_of"})
    with pytest.raises(ValueError, match=rf"(?s){directory}.*vit_unheard_of"):
        make(checkpoint=str(directory))


def test_another_checkpoint_needs_its_own_probe(copied: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"no segmentation probe .*pass\s*probe='directory'.*canvit-gym fit-probe"):
        make(checkpoint=str(copied("nano")))


def test_a_probe_that_lacks_its_config(copied: Callable[[str], Path]) -> None:
    directory = copied("nano-segmentation-probe")
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        make(probe=str(directory))


def test_a_probe_of_another_width(tmp_path: Path) -> None:
    SegmentationProbe(embed_dim=64, num_classes=11, dropout=0.1, use_ln=True).save_pretrained(tmp_path / "p")
    with pytest.raises(ValueError, match=r"reads 64 channels, but the canvas .*'nano' has 128.*fit-probe"):
        make(probe=str(tmp_path / "p"))


def test_a_probe_of_other_classes(tmp_path: Path) -> None:
    SegmentationProbe(embed_dim=128, num_classes=150, dropout=0.1, use_ln=True).save_pretrained(tmp_path / "p")
    with pytest.raises(ValueError, match=r"distinguishes 150 classes, but the scenes have 11. .*these classes"):
        make(probe=str(tmp_path / "p"))


def test_a_classification_probe_of_another_width(copied: Callable[[str], Path]) -> None:
    directory = copied("nano-classification-probe")
    width = load_file(directory / "model.safetensors")["weight"].shape[1]
    save_file({"weight": torch.zeros(10, width + 1), "bias": torch.zeros(10)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=rf"does not fit checkpoint 'nano'.* weight \[classes, {width}\]"):
        make(dataset="fashion-classification", probe=str(directory))


def test_a_classification_probe_of_other_classes(copied: Callable[[str], Path]) -> None:
    directory = copied("nano-classification-probe")
    width = load_file(directory / "model.safetensors")["weight"].shape[1]
    save_file({"weight": torch.zeros(7, width), "bias": torch.zeros(7)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match="distinguishes 7 classes, but the scenes have 10"):
        make(dataset="fashion-classification", probe=str(directory))


def test_a_segmentation_probe_for_classification() -> None:
    with pytest.raises(ValueError, match=r"does not fit checkpoint 'nano'.*holds weight"):
        make(dataset="fashion-classification", probe=str(asset_dir("nano-segmentation-probe")))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the directory should be: refused to root as well."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot prepare FashionScenes in .*file.*Set \$CANVIT_GYM_CACHE to a writable"):
        make()
