"""The authors' released policies: a file of their layout loads and acts; others are refused by the first difference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from canvit_gym.actions import grid_viewpoints
from canvit_gym.assembly import build_backbone
from canvit_gym.benchmark.runner import BenchmarkConfig, benchmark, evaluable
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import evaluate
from canvit_gym.play.rivals import make_rival
from canvit_gym.policies import load_policy, window
from canvit_gym.policies.learned import load_record
from canvit_gym.policies.released import GROUPS, ReleasedPolicy, ViewpointScorer

CONFIG = EnvConfig(split="validation", num_scenes=5, device="cpu", budget=3, grid_scales=(0.5, 0.25), grid_centers=4)
ARGUMENTS: dict[str, Any] = {
    "width": 8, "n_scale": 2, "scales": [0.5, 0.25], "centers_per_axis": 4, "block_layers": 1, "dueling": True,
    "groups": list(GROUPS),
}  # fmt: skip


def release(directory: Path, **changes: Any) -> Path:
    """A policy of nano's canvas in the layout of the released ones."""
    canvas_dim = build_backbone(CONFIG).canvit.canvas_dim
    arguments = {"canvas_dim": canvas_dim, **ARGUMENTS} | changes
    torch.manual_seed(0)
    network = ViewpointScorer(**arguments)
    table = grid_viewpoints(scales=tuple(arguments["scales"]), centers=arguments["centers_per_axis"])
    network.sb_grids.copy_(torch.from_numpy(table[:, 1::-1].copy()).view_as(network.sb_grids))
    directory.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(arguments))
    return directory


def test_the_released_size() -> None:
    """5,670,800 parameters, as the released policies have, and scores of 2 x 16 x 16 viewpoints."""
    network = ViewpointScorer(
        canvas_dim=1024, width=128, n_scale=2, scales=(0.5, 0.25), centers_per_axis=16, block_layers=3, dueling=True
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_670_800
    names = set(network.state_dict())
    assert {
        "frontend.proj.5.weight",
        "enc.5.2.mlp.grn.bias",
        "dec.4.0.weight",
        "head.0.2.gamma",
        "vhead.2.bias",
    } <= names


def test_a_released_policy_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name below $CANVIT_HUB_ROOT, and from its directory. Its numbers do not depend on the batch."""
    monkeypatch.setenv("CANVIT_HUB_ROOT", str(tmp_path))
    directory = release(tmp_path / "qpolicy-ade20k-tiny-s0")
    policy = load_policy("canvit/qpolicy-ade20k-tiny-s0", config=CONFIG, device="cpu")
    assert isinstance(policy, ReleasedPolicy) and "canvit/qpolicy-ade20k-tiny-s0" in policy.info.description
    whole, split = (evaluate(policy, config=CONFIG, batch_size=size).viewpoints for size in (5, 2))
    np.testing.assert_allclose(whole, split, atol=1e-5)
    assert (whole[:, 0] == (0, 0, 1)).all()
    chosen = whole[:, 1:].reshape(-1, 3)
    assert all((np.abs(policy.table - viewpoint).max(axis=1) < 1e-6).any() for viewpoint in chosen)
    np.testing.assert_array_equal(evaluate(load_policy(directory, device="cpu"), config=CONFIG).viewpoints, whole)


@pytest.mark.parametrize("spec", ["canvit/qpolicy-ade20k-tiny-s0", "qpolicy-ade20k-tiny-s0", "directory"])
def test_commands_take_a_released_policy(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation, benchmarks and the page to play on, with the policy's viewpoints for actions."""
    monkeypatch.setenv("CANVIT_HUB_ROOT", str(tmp_path))
    directory = release(tmp_path / "qpolicy-ade20k-tiny-s0")
    spec = str(directory) if spec == "directory" else spec
    wanted = evaluate(load_policy(directory, device="cpu"), config=CONFIG).viewpoints
    other = replace(CONFIG, action="continuous", first_glimpse="random")
    for made in (evaluable(spec, other), make_rival(spec, other)):
        assert isinstance(made.policy, ReleasedPolicy)
        assert (made.config.action, made.config.grid_centers, made.config.first_glimpse) == ("grid", 4, "full")
        np.testing.assert_array_equal(evaluate(made.policy, config=made.config).viewpoints, wanted)
    with pytest.raises(ValueError, match="not how likely they are"):
        evaluable(spec, CONFIG, deterministic=False)
    for make in (evaluable, make_rival):
        with pytest.raises(ValueError, match="supports segmentation, not classification"):
            make(spec, replace(CONFIG, dataset="fashion-classification"))
    with pytest.raises(ValueError, match=r"released by CanViT's authors and has no policy\.json"):
        load_record(spec)


def test_a_benchmark_of_a_released_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVIT_HUB_ROOT", str(tmp_path))
    release(tmp_path / "qpolicy-ade20k-tiny-s0")
    policies = ("coarse_to_fine", "canvit/qpolicy-ade20k-tiny-s0")
    config = BenchmarkConfig(
        output=tmp_path / "out", policies=policies, budget=2, num_scenes=4, device="cpu", progress=False
    )
    report = benchmark(config).read_text(encoding="utf-8")
    assert "qpolicy-ade20k-tiny-s0" in report and "released by CanViT&#x27;s authors" in report


def test_a_released_policy_has_no_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"knows what viewpoints are worth, not how likely.*use deterministic=True"):
        load_policy(release(tmp_path), device="cpu", deterministic=False)


def test_scores_are_read_at_the_centers(tmp_path: Path) -> None:
    """A network that passes the uncertainty through looks where it is largest."""
    policy: Any = load_policy(release(tmp_path, groups=["ent"], dueling=False), device="cpu")
    network: Any = policy.network
    with torch.no_grad():
        for decode in network.dec:
            decode[0].weight.zero_()
            decode[0].weight[:, 8:, 0, 0] = torch.eye(8)  # what the encoder had at this size
            decode[0].bias.zero_()
        for block in (m for m in network.modules() if type(m).__name__ == "Block"):
            block.gamma.zero_()
        network.head[1].weight.zero_()
        network.head[1].weight[0, 0] = 1
    network.frontend = torch.nn.Conv2d(1, 8, 1, bias=False)
    torch.nn.init.ones_(network.frontend.weight)
    features = torch.zeros(1, 1, 32, 32)
    features[0, 0, 20:24, 8:12] = 1  # around (row, col) = (0.375, -0.375)
    best = policy.table[network(features).argmax().item()]
    distances = np.abs(policy.table[:, :2] - (0.375, -0.375)).max(axis=1)
    assert np.abs(best[:2] - (0.375, -0.375)).max() == pytest.approx(distances.min())


def test_features_follow_the_states(tmp_path: Path) -> None:
    """At the first decision "before" is the empty canvas; later, what was seen at the last one."""
    policy: Any = load_policy(release(tmp_path), device="cpu")
    held: list[torch.Tensor] = []

    def keep(t: int, episodes: EpisodeBatch) -> None:
        if t == 0:
            seen = window(policy.info, episodes)
            policy.reset(seen, seed=0)
            held.extend([policy._features(seen), policy._features(seen)])

    evaluate(policy, config=CONFIG, num_glimpses=1, on_glimpse=keep)
    first, again = held
    dim = policy.network.frontend.sizes[-1]
    ent, ent_delta, cos_prev, cos_init, canvas, delta = first.split([1, 1, 1, 1, dim, dim], dim=1)
    assert torch.equal(cos_prev, cos_init) and not torch.equal(ent, ent_delta) and delta.abs().max() > 0.1
    assert canvas.mean(dim=1).abs().max() < 1e-4 and ent.min() >= 0
    assert again[:, 1].abs().max() == 0 and again[:, -dim:].abs().max() == 0 and torch.equal(again[:, 3], first[:, 3])


def test_other_layouts_are_refused_by_the_first_difference(tmp_path: Path) -> None:
    directory = release(tmp_path / "policy")
    weights, arguments = load_file(directory / "model.safetensors"), json.loads((directory / "config.json").read_text())

    def refused(message: str, *, changed: dict[str, Any] | None = None, drop: str | None = None) -> None:
        (directory / "config.json").write_text(
            json.dumps({k: v for k, v in {**arguments, **(changed or {})}.items() if k != drop})
        )
        with pytest.raises(ValueError, match=message):
            load_policy(directory, device="cpu")

    refused("lacks 'width'", drop="width")
    refused("has another readout than 'unet'", changed={"readout": "local"})
    refused("has 'depth', which is not known here", changed={"depth": 3})
    refused("has the feature group 'motion'", changed={"groups": ["motion"]})
    refused(
        r"differs in 'frontend.gate': shape \(1,\) is expected, shape \(6,\) was found", changed={"groups": ["ent"]}
    )
    (directory / "config.json").write_text(json.dumps(arguments))
    save_file({k: v for k, v in weights.items() if k != "head.1.bias"}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"differs in 'head.1.bias': shape \(1,\) is expected, none was found"):
        load_policy(directory, device="cpu")
    save_file(weights | {"sb_grids": weights["sb_grids"] * 0.5}, directory / "model.safetensors")
    with pytest.raises(ValueError, match="the centers in 'sb_grids' are not those of a grid"):
        load_policy(directory, device="cpu")


def test_another_environment_is_refused(tmp_path: Path) -> None:
    directory = release(tmp_path)
    with pytest.raises(ValueError, match=r"action='grid', grid_scales=\[0.5, 0.25\], grid_centers=4"):
        load_policy(directory, config=EnvConfig(device="cpu", grid_centers=8), device="cpu")
    wide = load_policy(release(tmp_path / "wide", canvas_dim=64), device="cpu")
    with pytest.raises(ValueError, match="reads canvases of 64 channels, but the checkpoint's has 128"):
        evaluate(wide, config=CONFIG)
    classification = EnvConfig(dataset="fashion-classification", split="validation", num_scenes=2, device="cpu")
    with pytest.raises(ValueError, match="supports segmentation, not classification"):
        evaluate(wide, config=classification)
