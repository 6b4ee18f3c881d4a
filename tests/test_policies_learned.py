"""Learned policies behind the protocol: from a directory, on the environment they fit, sampled scene by scene."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit_json
from safetensors.torch import load_file, save_file
from untrained import save_untrained

from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import window
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.vector_env import GlimpseVectorEnv

CONFIG = EnvConfig(split="validation", num_scenes=8, device="cpu", grid_centers=4, budget=3)
VARIANTS: dict[str, dict[str, Any]] = {
    "grid": {},
    "grid with stop": {"allow_stop": True},
    "continuous": {"action": "continuous"},
    "continuous with stop": {"action": "continuous", "allow_stop": True},
    "random first glimpse": {"first_glimpse": "random"},
    "own first glimpse": {"first_glimpse": None},
    "classification": {"dataset": "fashion-classification"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sampled_viewpoints_are_a_function_of_seed_and_scene(tmp_path: Path, variant: str) -> None:
    config = replace(CONFIG, **VARIANTS[variant])
    save_untrained(tmp_path, config)
    policy = load_policy(tmp_path, config=config, deterministic=False)
    assert not policy.info.deterministic
    one, five, eight = (evaluate(policy, config=config, batch_size=size, seed=5).viewpoints for size in (1, 5, 8))
    np.testing.assert_allclose(one, five, atol=1e-5)
    np.testing.assert_allclose(one, eight, atol=1e-5)
    assert not np.allclose(one, evaluate(policy, config=config, seed=6).viewpoints, atol=1e-4)
    # An untrained policy prefers nothing: all scenes and glimpses differ because their numbers do.
    assert len({row.tobytes() for row in one}) == 8 and not np.allclose(one[:, 1], one[:, 2], atol=1e-4)
    if config.first_glimpse == "full":
        assert (one[:, 0] == (0, 0, 1)).all()


@pytest.mark.parametrize("action", ["grid", "continuous"])
def test_most_likely_viewpoints_do_not_depend_on_the_seed(tmp_path: Path, action: Any) -> None:
    config = replace(CONFIG, action=action)
    save_untrained(tmp_path, config)
    policy = load_policy(tmp_path, config=config)
    assert policy.info.deterministic and policy.info.observations == config.observations
    one, other = (
        evaluate(policy, config=config, seed=seed, batch_size=size).viewpoints for seed, size in ((0, 8), (1, 3))
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_without_revisit_every_viewpoint_is_taken_once(tmp_path: Path, deterministic: bool) -> None:
    config = replace(CONFIG, grid_scales=(0.5,), grid_centers=2, budget=5, revisit=False)
    save_untrained(tmp_path, config)
    policy = load_policy(tmp_path, config=config, deterministic=deterministic)
    viewpoints = evaluate(policy, config=config).viewpoints
    assert all(len({tuple(viewpoint) for viewpoint in row.tolist()}) == 5 for row in viewpoints)


def test_samples_follow_the_distribution(tmp_path: Path) -> None:
    """Over many seeds every action comes up about as often as its probability says."""
    save_untrained(tmp_path, CONFIG)
    policy = load_policy(tmp_path, config=CONFIG, deterministic=False)
    with torch.no_grad():
        policy.network.get_parameter("action_net.score_maps.weight").mul_(100)
    drawn: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []

    def keep(t: int, episodes: EpisodeBatch) -> None:
        if t == 0:
            distribution: Any = policy.network.distribution(episodes.observe())  # type: ignore[operator]
            probabilities.append(distribution.probs.detach().numpy())
            seen = window(policy.info, episodes)
            for seed in range(400):
                policy.reset(seen, seed=seed)
                drawn.append(policy.actions.encode(policy.viewpoints(1, seen)))

    evaluate(policy, config=replace(CONFIG, num_scenes=4), on_glimpse=keep)
    (expected,) = probabilities  # [4, A]
    frequency = np.stack([(np.stack(drawn) == action).mean(axis=0) for action in range(expected.shape[1])], axis=1)
    assert expected.max() > 2 / expected.shape[1], "nothing to tell from uniform"
    np.testing.assert_allclose(frequency, expected, atol=5 * np.sqrt(expected.max() / 400))
    assert np.corrcoef(frequency.ravel(), expected.ravel())[0, 1] > 0.9


def test_flops_are_the_networks_and_the_probes(tmp_path: Path) -> None:
    """The uncertainty has to be decoded first: 16 x 16 cells, 128 channels, 11 classes."""
    counts: list[int] = []
    for name, observations in (("sees", CONFIG.observations), ("blind", ("canvas", "acuity", "viewpoint", "time"))):
        config = replace(CONFIG, observations=observations, num_scenes=1)
        save_untrained(tmp_path / name, config)
        policy = load_policy(tmp_path / name, config=config)

        def count(t: int, episodes: EpisodeBatch, policy: LearnedPolicy = policy) -> None:
            if t == 0:
                seen = window(policy.info, episodes)
                counts.append(policy.flops_per_decision(seen))
                assert policy.flops_per_decision(seen) == counts[-1]

        evaluate(policy, config=config, num_glimpses=2, on_glimpse=count)
    sees, blind = counts
    assert sees - blind > 2 * 16 * 16 * 128 * 11 * 0.99 and blind > 1e5


def test_a_run_directory_stands_for_its_best_policy(tmp_path: Path) -> None:
    save_untrained(tmp_path / "best", CONFIG)
    policies = [load_policy(path, config=CONFIG) for path in (tmp_path, tmp_path / "best")]
    one, other = (evaluate(policy, config=CONFIG).viewpoints for policy in policies)
    assert np.array_equal(one, other)


def test_another_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no policy.safetensors"):
        load_policy(tmp_path, config=CONFIG)
    save_untrained(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"action space: trained on n=32, found 50"):
        load_policy(tmp_path, config=replace(CONFIG, grid_centers=5))
    policy = load_policy(tmp_path, config=CONFIG)
    with pytest.raises(ValueError, match=r"policy 'learned' supports segmentation.*, not classification"):
        evaluate(policy, config=replace(CONFIG, dataset="fashion-classification"))
    with pytest.raises(ValueError, match=r"observation layout: trained on canvas_size=8, found 4"):
        evaluate(policy, config=replace(CONFIG, canvas_size=4))


def test_weights_that_are_no_policy(tmp_path: Path) -> None:
    """Not finite, of another training, or of a network of another version."""
    directory = save_untrained(tmp_path / "diverged", CONFIG)
    weights = load_file(directory / "policy.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, directory / "policy.safetensors")
    with pytest.raises(ValueError, match=r"their sha256 is .*Copy the two files together"):
        load_policy(directory, config=CONFIG)
    edit_json(directory / "policy.json", weights_sha256=None)
    with pytest.raises(ValueError, match=f"{name} holds a number that is not finite.*train the policy again"):
        load_policy(directory, config=CONFIG)
    edit_json(directory / "policy.json", network_class="Oracle")
    with pytest.raises(ValueError, match=r"a Oracle, which this version of canvit_gym does not know; .*Update"):
        load_policy(directory, config=CONFIG)


@pytest.mark.parametrize("key", ["uncertainty", "reading"])
def test_what_a_policy_reads_of_the_probe_counts(tmp_path: Path, key: Any) -> None:
    config = replace(CONFIG, observations=("canvas", key, "time"))
    policy = load_policy(save_untrained(tmp_path / "reads", config))
    without = load_policy(save_untrained(tmp_path / "blind", replace(CONFIG, observations=("canvas", "time"))))
    assert policy.info.needs_segmentation_probe and not without.info.needs_segmentation_probe
    envs = GlimpseVectorEnv(1, **vars(config))
    envs.reset(seed=0)
    seen = window(policy.info, envs.episodes)
    assert policy.flops_per_decision(seen) == policy._network_flops + probe_flops(seen)  # type: ignore[operator]
    envs.close()

    path = tmp_path / "reads" / "policy.json"
    record = json.loads(path.read_text())
    record["inputs"]["probe_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"differs in the probe behind `{key}`: trained on sha256 0000"):
        load_policy(tmp_path / "reads")


OF_EARLIER_VERSIONS = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["policies-0.1.0/grid", "policies-0.1.0/continuous"])
def test_policies_of_earlier_versions_act_as_they_did(name: str) -> None:
    """Saved, and their viewpoints on six scenes noted, by the version in the directory's name."""
    directory = OF_EARLIER_VERSIONS / name
    noted = json.loads((directory / "viewpoints.json").read_text())
    policy = load_policy(directory)
    for how, deterministic in (("deterministic", True), ("sampled", False)):
        found = evaluate(policy if deterministic else policy.sampling(), config=policy.record.env, seed=3)
        np.testing.assert_allclose(found.viewpoints, noted[how], atol=1e-5)


WITHOUT_SB3 = """
import sys
sys.modules["stable_baselines3"] = None  # any import of it fails
import gymnasium as gym, numpy as np
import canvit_gym
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import load_policy
for directory in sys.argv[1:]:
    policy = load_policy(directory)
    assert evaluate(policy, config=policy.record.env).viewpoints.shape == (6, 3, 3)
    kwargs = {k: v for k, v in policy.record.env.to_json().items() if k != "dataset"}
    env = gym.make(policy.record.env_id, **kwargs)
    observation, _ = env.reset(seed=0)
    ended = False
    while not ended:
        action, state = policy.predict(observation)
        observation, reward, ended, truncated, info = env.step(action)
    assert info["glimpses"] <= 3
"""


def test_policies_act_without_stable_baselines3() -> None:
    directories = [str(OF_EARLIER_VERSIONS / "policies-0.1.0" / name) for name in ("grid", "continuous")]
    command = [sys.executable, "-c", WITHOUT_SB3, *directories]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predict_takes_one_observation_or_many(tmp_path: Path) -> None:
    save_untrained(tmp_path, CONFIG)
    policy = load_policy(tmp_path)
    envs = GlimpseVectorEnv(4, **vars(CONFIG))
    observation, _ = envs.reset(seed=0)
    many, _ = policy.predict(observation)
    singles = [policy.predict({key: value[row] for key, value in observation.items()})[0] for row in range(4)]
    assert many.shape == (4,) and many.tolist() == singles and isinstance(singles[0], int)
    sampled, _ = policy.predict(observation, deterministic=False)
    assert envs.action_space.contains(sampled)
    del observation["time"]
    with pytest.raises(KeyError, match=r"reads time, which the observation lacks: make the environment with observ"):
        policy.predict(observation)
    envs.close()
    other = GlimpseVectorEnv(2, **vars(replace(CONFIG, canvas_size=4)))
    with pytest.raises(ValueError, match=r"'canvas' has shape \(2, 128, 4, 4\), but .* trained on \(128, 8, 8\)"):
        policy.predict(other.reset(seed=0)[0])
    other.close()


def test_policies_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvit_gym.policies.learned.asset_dir", lambda name: tmp_path / name)
    save_untrained(tmp_path / "policies" / "FashionSegmentation-v0" / "ppo", CONFIG)
    assert load_policy("FashionSegmentation-v0/ppo").record.env == CONFIG
    assert load_policy("CanViT/FashionSegmentation-v0/ppo").record.env == CONFIG
    with pytest.raises(FileNotFoundError, match=r"did you mean 'FashionSegmentation-v0/ppo'\? shipped are: "):
        load_policy("FashionSegmentation-v0/pp")


def test_a_network_of_values_acts_greedily(tmp_path: Path) -> None:
    """All that a network needs is `values`."""

    class Values(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.best = torch.nn.Parameter(torch.tensor(7.0))

        def values(self, observation: dict[str, torch.Tensor]) -> torch.Tensor:
            rows = len(observation["time"])
            return torch.eye(32)[int(self.best)].expand(rows, -1)

    save_untrained(tmp_path, CONFIG)
    record = replace(load_policy(tmp_path).record, algorithm="Seven")
    policy = LearnedPolicy(Values(), record)
    assert policy.info.description == "Seven trained on CanViT/FashionSegmentation-v0, viewpoint of highest value"
    found = evaluate(policy, config=CONFIG).viewpoints
    assert (found[:, 1:] == policy.actions.decode(np.array([7]))[0]).all()
    with pytest.raises(ValueError, match=r"of Seven knows what viewpoints are worth, .* use deterministic=True"):
        policy.sampling()
