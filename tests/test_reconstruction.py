"""Reconstruction: whose features are predicted, how they are compared, and what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canvit_pytorch.hub import repos
from conftest import small
from datasets import tiny
from hub import random_dinov3, repo_dir

from canvit_gym.assembly import build_backbone, build_scenes, build_task
from canvit_gym.backbone import teachers
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.teachers import TEACHERS, default_teacher, load_teacher
from canvit_gym.benchmark.single import table
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.probes.fit import ProbeConfig
from canvit_gym.probes.fit import main as fit_probe
from canvit_gym.tasks.reconstruction import ReconstructionTask
from canvit_gym.vector_env import GlimpseVectorEnv

FOLDER = "CanViT/ReconstructionFolder-v0"
CONFIG = env_config(FOLDER, {**small(FOLDER), "split": "training"})

MakeVec = Callable[..., GlimpseVectorEnv]


def task_of(config: EnvConfig = CONFIG) -> ReconstructionTask:
    return cast(ReconstructionTask, build_task(config, build_backbone(config), build_scenes(config).classes))


def test_truth_is_what_the_teacher_sees_and_reading_what_the_checkpoint_predicts(make_vec: MakeVec) -> None:
    """Against canvit-pytorch's own readout and standardizer."""
    envs = make_vec(3, FOLDER)
    _, info = envs.reset(seed=0)
    model, teacher = envs.backbone.pretrained, cast(ReconstructionTask, envs.task).teacher
    assert envs.episodes.images is not None and envs.episodes.logits is not None
    true = model.teacher_patch_standardizer(teacher(envs.episodes.images))  # [N, G*G, D]
    predicted = model.predict_teacher_patches(envs.episodes.state.canvas)
    for maps, tokens in ((envs.episodes.truth["features"], true), (envs.episodes.logits, predicted)):
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(info["score"], F.cosine_similarity(predicted, true, dim=-1).mean(dim=1), atol=1e-5)
    np.testing.assert_allclose(info["loss"], (predicted - true).square().mean(dim=(1, 2)), rtol=1e-4)


def test_potentials_of_the_truth_itself(make_vec: MakeVec) -> None:
    envs = make_vec(2, FOLDER)
    envs.reset(seed=0)
    truth, task = envs.episodes.truth, envs.task
    measured = {name: one.measure(truth["features"], truth) for name, one in task.potentials.items()}
    for name, best in (("loss", 0.0), ("score", 1.0), ("soft_score", 1.0)):
        np.testing.assert_allclose(measured[name], best, atol=1e-5)


def test_the_teacher_looks_once_at_every_scene(make_vec: MakeVec, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    network = load_teacher("nano-teacher", build_backbone(CONFIG)).network
    see = network.forward

    def forward(images: torch.Tensor) -> Any:
        looked_at.append(len(images))
        return see(images)

    monkeypatch.setattr(network, "forward", forward)
    envs = make_vec(4, FOLDER, budget=3, action="quadtree", allow_stop=True)
    envs.reset(seed=0)
    assert looked_at == [4]
    envs.step(np.array([1, 21, 2, 3]))  # the second episode stops, and its row has a new scene in the next step
    assert looked_at == [4]
    envs.step(np.array([1, 0, 2, 3]))
    assert looked_at == [4, 1]


def test_many_scenes_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    task, images = task_of(), torch.randn(5, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    whole = task.teacher(images)
    monkeypatch.setattr(teachers, "SCENES_AT_ONCE", 2)
    torch.testing.assert_close(task.teacher(images), whole, rtol=1e-4, atol=1e-4)


def test_images_in_any_folders_are_scenes() -> None:
    """Without labels; the folders of classes are folders like any others."""
    scenes = build_scenes(replace(CONFIG, num_scenes=None))
    assert len(scenes) == 12 and scenes.classes == () and "unlabelled folder" in scenes.name
    batch = scenes.load(np.array([3, 0]))
    assert batch.images.shape == (2, 3, 128, 128) and batch.labels.tolist() == [0, 0]


def test_a_flat_folder_is_split_by_a_hash(tmp_path: Path) -> None:
    for number, path in enumerate(sorted(tiny("image-folder").rglob("*.jpg"))):
        for copy in range(4):
            shutil.copyfile(path, tmp_path / f"{number}_{copy}.jpg")
    sizes = {
        split: len(build_scenes(replace(CONFIG, root=str(tmp_path), split=split, num_scenes=None)))
        for split in ("training", "validation", "test")
    }
    assert sum(sizes.values()) == len(list(tmp_path.iterdir())) and sizes["training"] > sizes["validation"]
    with pytest.raises(FileNotFoundError, match=r"holds no image\. Expected: images, in any folders"):
        (tmp_path / "empty").mkdir()
        build_scenes(replace(CONFIG, root=str(tmp_path / "empty")))


def test_the_error_locator_is_told_where_the_prediction_is_wrong() -> None:
    policy = make_policy("error_locator(scale=0.5, centers=2)", config=CONFIG, num_glimpses=2)
    found = evaluate(policy, config=CONFIG, num_glimpses=2)
    wrong: list[torch.Tensor] = []
    full = make_policy("repeated_full_scene", config=CONFIG, num_glimpses=1)
    evaluate(full, config=CONFIG, num_glimpses=1, on_glimpse=lambda t, e: wrong.append(
        1 - F.cosine_similarity(e.logits, e.truth["features"], dim=1)
    ))  # fmt: skip
    quarters = F.avg_pool2d(torch.cat(wrong).unsqueeze(1), 8).flatten(1)  # [N, 4]
    centers = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    np.testing.assert_allclose(found.viewpoints[:, 1, :2], centers[quarters.argmax(dim=1)])
    assert "| mean squared error | " in table(found) and "cross-entropy" not in table(found)
    with pytest.raises(ValueError, match=r"'error_locator.*' supports reconstruction, not segmentation"):
        config = EnvConfig(num_scenes=2, device="cpu")
        evaluate(make_policy("error_locator", config=config, num_glimpses=2), config=config, num_glimpses=2)


class TestTeachers:
    def test_dinov3_is_told_by_its_own_names(self) -> None:
        pytest.importorskip("transformers")
        from canvit_pytorch.teacher import DINOV3_REPOS, TEACHER_REPO

        assert {name for name in TEACHERS.values() if "/" in name} == set(DINOV3_REPOS.values())
        assert TEACHERS[768] == TEACHER_REPO

    def test_a_checkpoint_has_the_teacher_of_its_width(self) -> None:
        assert default_teacher(build_backbone(CONFIG)) == "nano-teacher"

    def test_dinov3_is_loaded_from_a_directory(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        name = str(random_dinov3(tmp_path / "dinov3", width=12, patch_px=8))
        with pytest.raises(ValueError, match=r"features of width 12, but checkpoint 'nano' .* 11: .*nano-teacher"):
            task_of(replace(CONFIG, probe=name))

    def test_dinov3_needs_transformers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = shutil.copytree(asset_dir("nano-teacher"), tmp_path / "dinov3")
        (directory / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
        monkeypatch.delitem(sys.modules, "canvit_pytorch.teacher", raising=False)
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'canvit-gym\[teacher\]'"):
            task_of(replace(CONFIG, probe=str(directory)))

    def test_what_cannot_be_had_is_named_with_a_cure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match=r"'facebook/dinov3-none' is not in the Hub's cache.*hf download"):
            task_of(replace(CONFIG, probe="facebook/dinov3-none"))

    def test_what_is_no_teacher_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"'nano-segmentation-probe'.* is no teacher: the model_type.*Leave probe"):
            task_of(replace(CONFIG, probe="nano-segmentation-probe"))
        broken = shutil.copytree(asset_dir("nano-teacher"), tmp_path / "broken")
        (broken / "model.safetensors").write_bytes(b"no weights")
        with pytest.raises(ValueError, match=r"teacher '.*broken' .* cannot be loaded"):
            task_of(replace(CONFIG, probe=str(broken)))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"canvas_grid": 8}, r"'nano' predicts features of a 16 x 16 grid.*canvas_grid=8: .*pass canvas_grid=16"),
            ({"scene_size_px": 96}, r"16 x 16 grid of cells of 8 px on scenes of 128 px, but scene_size_px=96"),
        ],
    )
    def test_sizes_that_the_teacher_does_not_have(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            task_of(replace(CONFIG, **changes))

    def test_checkpoints_without_a_known_teacher(self, hub_root: Path) -> None:
        flagship = replace(CONFIG, checkpoint="flagship")
        with pytest.raises(ValueError, match=r"'flagship' predicts features of width 24.*Pass probe='directory'"):
            task_of(flagship)
        with pytest.raises(ValueError, match=r"'finetuned-in1k' is fine-tuned .* has no pretraining readouts"):
            task_of(replace(CONFIG, checkpoint="finetuned-in1k"))
        assert repo_dir(hub_root, repos.FLAGSHIP).is_dir()


class TestRefused:
    def test_uncertainty_is_not_observed(self) -> None:
        with pytest.raises(ValueError, match="task does not predict probabilities: leave it out"):
            gym.make(FOLDER, **{**small(FOLDER), "observations": ["uncertainty"]})

    def test_policies_of_classes(self) -> None:
        with pytest.raises(
            ValueError, match="'entropy_greedy' needs a segmentation probe, which the task reconstruction does not have"
        ):
            evaluate(make_policy("entropy_greedy", config=CONFIG, num_glimpses=2), config=CONFIG, num_glimpses=2)

    def test_there_is_no_probe_to_fit(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"reconstruction of .*ReconstructionFolder-v0 is read without a probe"):
            fit_probe(ProbeConfig(output_dir=tmp_path, env=FOLDER, root=tiny("image-folder"), checkpoint="nano"))
