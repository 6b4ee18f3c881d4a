"""Episodes as animations, and the quick start for notebooks, which is run as a notebook runs it."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from conftest import SMALL
from PIL import Image

import canvit_gym
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.perturbations import PERTURBATIONS, Perturb
from canvit_gym.play.explore import Explored, explorer_data
from canvit_gym.policies import make_policy

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def episode(**kwargs: Any) -> gym.Env:
    env = gym.make("CanViT/FashionSegmentation-v0", split="test", **SMALL, **kwargs)
    env.reset(seed=0, options={"scene": 2})
    return env


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_an_episode_is_an_animation(suffix: str, tmp_path: Path) -> None:
    env = episode()
    for action in (0, 300):
        env.step(action)
    animation = canvit_gym.show(env)
    assert len(animation.frames) == 3 and animation.title.startswith("Scene 2 through 3 glimpses")
    with Image.open(animation.save(tmp_path / f"episode.{suffix}")) as picture:
        assert getattr(picture, "n_frames", 1) == 3
        assert picture.size == animation.frames[0].shape[1::-1]
    assert 'alt="Scene 2' in animation._repr_html_()


def test_an_evaluation_or_its_file(tmp_path: Path) -> None:
    config = EnvConfig(split="test", num_scenes=4, device="cpu", budget=2)
    evaluation = evaluate(make_policy("center", config=config, num_glimpses=2), config=config)
    evaluation.save(tmp_path / "center.npz")
    one, other = canvit_gym.show(evaluation, scene=3), canvit_gym.show(tmp_path / "center.npz", scene=3)
    assert one.title == other.title and f"{evaluation.scene_score()[3, -1]:.3f}" in one.title
    assert Image.open(io.BytesIO(one.encoded())).format == "WEBP"


def test_one_of_a_vector_environment() -> None:
    envs = gym.make_vec("CanViT/FashionClassification-v0", num_envs=2, split="test", **SMALL)
    envs.reset(options={"scene": [5, 7]})
    assert canvit_gym.show(envs, row=1).title.startswith("Scene 7")
    with pytest.raises(ValueError, match="row must lie in"):
        canvit_gym.show(envs, row=2)


def test_records_of_earlier_versions_and_other_machines_are_shown() -> None:
    """With keywords that have no effect any more, and a GPU that is not here."""
    config = EnvConfig(split="test", num_scenes=4, device="cpu", budget=2)
    evaluation = evaluate(make_policy("center", config=config, num_glimpses=2), config=config)
    elsewhere = evaluation.record["config"] | {"first_glimpse_cache_mb": 0, "device": "cuda:63"}
    found = replace(evaluation, record=evaluation.record | {"config": elsewhere})
    assert canvit_gym.show(found).title == canvit_gym.show(evaluation).title
    data = explorer_data([Explored("found", found, uses_labels=False)], num_scenes=1)
    assert data["scenes"][0]["viewpoints"][0][0] == [0, 0, 1]


def test_what_is_shown_was_perturbed_as_it_was_scored() -> None:
    """Scene pixels, glimpses that are lost, and viewpoints, which must not miss their targets twice."""
    names = ("darker", "smaller", "dropped", "missed")
    perturbations = [PERTURBATIONS[name] for name in names]
    config = EnvConfig(split="test", num_scenes=4, device="cpu", budget=3)
    policy = make_policy("center", config=config, num_glimpses=3)
    evaluation = evaluate(policy, config=config, perturbations=perturbations)
    assert abs(evaluation.scene_score() - evaluate(policy, config=config).scene_score())[:, -1].max() > 0.05
    for scene, score in enumerate(evaluation.scene_score()[:, -1]):
        assert f"{score:.3f}" in canvit_gym.show(evaluation, scene=scene).title

    envs: Any = Perturb(
        gym.make_vec("CanViT/FashionSegmentation-v0", num_envs=2, split="test", track_score=True, **SMALL), *names
    )
    envs.reset(options={"scene": [1, 2]})
    for action in ([0, 1], [300, 2]):
        *_, info = envs.step(envs.action_space.dtype.type(action))
    assert canvit_gym.show(envs, row=1).title.endswith(f"{info['score'][1]:.3f}")


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="show takes an environment"):
        canvit_gym.show(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="no glimpse was taken yet"):
        canvit_gym.show(episode(first_glimpse=None))
    with pytest.raises(FileNotFoundError, match="no evaluation at"):
        canvit_gym.show(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match=r"saved as \.webp"):
        canvit_gym.show(episode()).save(tmp_path / "episode.mp4")
    with pytest.raises(ValueError, match="scene= is for evaluations"):
        canvit_gym.show(episode(), scene=1)


def test_the_quick_start_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(shown) == 2 and all("data:image/webp;base64," in text for text in shown)
