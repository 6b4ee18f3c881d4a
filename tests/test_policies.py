"""Hand-coded policies: one protocol, made by name, the same viewpoints whatever the batch."""

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from canvit_pytorch.policies import POLICIES, PolicyName
from canvit_pytorch.policies import make_policy as make_paper_policy
from numpy.typing import NDArray

from canvit_gym.actions import grid_viewpoints, quadtree_viewpoints
from canvit_gym.assembly import build_backbone, build_layout, build_scenes, build_task
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import (
    POLICY_NAMES,
    POLICY_SPECS,
    EntropyGreedy,
    GlimpsePolicy,
    PaperPolicy,
    QuadtreeBeam,
    center,
    make_policy,
    parse_spec,
    raster,
    supported_tasks,
    window,
)
from canvit_gym.policies.draws import DRAWS, draw
from canvit_gym.policies.saliency import spectral_residual
from canvit_gym.policies.windows import Windows
from canvit_gym.scenes.source import LocatedSource

CONFIG = EnvConfig(split="validation", num_scenes=8, device="cpu")
CLASSIFICATION = replace(CONFIG, dataset="fashion-classification")
ORDER = replace(CONFIG, num_scenes=3, revisit=False, grid_scales=(0.5,), grid_centers=3)
"""A fixed table of nine tiles."""
QUICK = {
    "best_fixed_sequence": "best_fixed_sequence(num_scenes=2)",
    "greedy_oracle": "greedy_oracle(max_candidates=3)",
    "jittered_oracle": "jittered_oracle(max_candidates=3)",
    "dependency_rank": "dependency_rank(num_scenes=8)",
    "learned_order": "learned_order(num_scenes=4, updates=2)",
}
"""Instead of the defaults, which search for long."""

CEILINGS = ("greedy_oracle", "jittered_oracle", "box_locator", "window_locator", "goal_locator", "error_locator")
STOCHASTIC: list[PolicyName] = ["full_then_random", "random", "coarse_to_fine", "fine_to_coarse"]


def looked_at(policy: GlimpsePolicy, config: EnvConfig = CONFIG, **kwargs: Any) -> NDArray[np.float32]:
    """[N, T, 3]"""
    return evaluate(policy, config=config, **kwargs).viewpoints


def episodes_of(config: EnvConfig, scenes: NDArray[np.int64], budget: int = 5) -> EpisodeBatch:
    backbone, source = build_backbone(config), build_scenes(config)
    task = build_task(config, backbone, source.classes)
    layout = build_layout(config, backbone, task)
    episodes = EpisodeBatch(num=len(scenes), backbone=backbone, task=task, layout=layout, scenes=source, budget=budget)
    episodes.reset_rows(episodes.all_rows, scenes, read=True)
    return episodes


@pytest.mark.parametrize("config", [CONFIG, CLASSIFICATION], ids=lambda config: config.dataset)
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_keeps_the_protocol(name: str, config: EnvConfig) -> None:
    """Viewpoints inside the scene, as repeatable as its info says, on the tasks that its info names, or an error."""
    config = replace(config, num_scenes=3)
    spec, info = QUICK.get(name, name), POLICY_SPECS[name].info
    task = config.dataset.removeprefix("fashion-")
    if task not in supported_tasks(info) or info.needs_table:
        with pytest.raises(ValueError, match="choose another policy"):
            make_policy(spec, config=config, num_glimpses=4)
        return
    policy = make_policy(spec, config=config, num_glimpses=4)
    one, again, other = (looked_at(policy, config, num_glimpses=4, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (3, 4, 3) and one.dtype == np.float32
    assert (one[..., 2] > 0).all() and (np.abs(one[..., :2]).max(axis=-1) <= 1 - one[..., 2] + 1e-6).all()
    assert np.array_equal(one, again)
    assert np.array_equal(one, other) == info.deterministic == policy.info.deterministic
    assert info.name == name and info.description and info.paper_name
    assert info.uses_labels == (name in CEILINGS)
    flops = policy.flops_per_decision(window(policy.info, episodes_of(config, np.arange(1))))
    assert (flops > 0) == (
        info.needs_segmentation_probe or "oracle" in name or name in ("saliency", "item_probability")
    )


@pytest.mark.parametrize("name", ["entropy_coarse_to_fine", "entropy_greedy", "quadtree_beam", "saliency", *STOCHASTIC])
def test_viewpoints_do_not_depend_on_the_batch_size(name: str) -> None:
    one, five, eight = (
        looked_at(make_policy(name, config=CONFIG, num_glimpses=5), batch_size=size) for size in (1, 5, 8)
    )
    assert np.array_equal(one, five) and np.array_equal(one, eight)
    if name in STOCHASTIC:
        assert not np.array_equal(one[0, 1:], one[1, 1:]), "scenes have streams of their own"
        assert not np.array_equal(one, looked_at(make_policy(name, config=CONFIG, num_glimpses=5), seed=1))


def test_a_shorter_budget_is_a_prefix_where_the_policy_does_not_plan() -> None:
    for name in ("random", "full_then_random", "coarse_to_fine"):
        long, short = (
            looked_at(make_policy(name, config=CONFIG, num_glimpses=n), num_glimpses=n, seed=4) for n in (5, 3)
        )
        assert np.array_equal(long[:, :3], short)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_batch_stream_is_canvit_pytorchs(name: PolicyName) -> None:
    """The whole batch drawn from the global generator, batch by batch, as canvit-pytorch's own evaluation draws it."""
    ours = looked_at(
        make_policy(f"{name}(random_stream='batch')", config=CONFIG, num_glimpses=6),
        num_glimpses=6,
        batch_size=5,
        seed=3,
    )
    torch.manual_seed(3)
    theirs = []
    for size in (5, 3):
        policy = make_paper_policy(
            name, batch_size=size, device=torch.device("cpu"), num_glimpses=6, canvas_grid_size=16
        )
        state = build_backbone(CONFIG).init_state(size)
        steps = [policy.step(t, state) for t in range(6)]
        theirs.append(torch.stack([torch.cat([v.centers, v.scales[:, None]], dim=1) for v in steps], dim=1))
    assert np.array_equal(ours, torch.cat(theirs).numpy())


def test_scene_streams_are_canvit_pytorchs_policies_too() -> None:
    """Quadrants in some order, then sixteenths; every order occurs."""
    viewpoints = looked_at(PaperPolicy("coarse_to_fine", num_glimpses=6), replace(CONFIG, num_scenes=8), num_glimpses=6)
    assert (viewpoints[:, 0] == (0, 0, 1)).all() and (viewpoints[:, 5, 2] == 0.25).all()
    quadrants = sorted(map(tuple, quadtree_viewpoints(levels=1)[1:].tolist()))
    assert all(sorted(map(tuple, row.tolist())) == quadrants for row in viewpoints[:, 1:5])
    assert len({row.tobytes() for row in viewpoints[:, 1:5]}) > 4


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("num_glimpses", [1, 2, 5, 6, 22])
def test_scene_streams_are_those_of_a_policy_per_scene(name: PolicyName, num_glimpses: int) -> None:
    """To the bit, with a level that is cut short, one that is whole, and the scene alone."""
    seeds, state = [3, 2**62 + 1, 0], build_backbone(CONFIG).init_state(1)
    theirs = []
    for seed in seeds:
        torch.manual_seed(seed)
        policy = make_paper_policy(
            name, batch_size=1, device=torch.device("cpu"), num_glimpses=num_glimpses, canvas_grid_size=16
        )
        steps = [policy.step(t, state) for t in range(num_glimpses)]
        theirs.append(torch.stack([torch.cat([v.centers[0], v.scales]) for v in steps]))
    assert np.array_equal(draw(name, seeds, num_glimpses=num_glimpses), torch.stack(theirs).numpy())


def test_every_random_policy_can_be_drawn() -> None:
    assert set(DRAWS) == {name for name, spec in POLICIES.items() if not spec.deterministic}


def test_scene_streams_are_cheap() -> None:
    """50 microseconds per scene and glimpse is a thirtieth of nano's forward; ten times that fails."""
    policy = PaperPolicy("coarse_to_fine", num_glimpses=5)
    seen = window(policy.info, episodes_of(CONFIG, np.arange(8)))
    policy.reset(seen, seed=0)
    began = time.process_time()
    for seed in range(10):
        policy.reset(seen, seed=seed)
    assert (time.process_time() - began) / (10 * 8 * 5) < 500e-6


def test_drawing_leaves_the_global_generator_alone() -> None:
    episodes = episodes_of(CONFIG, np.arange(2))
    before = torch.get_rng_state()
    policy = PaperPolicy("random", num_glimpses=5)
    policy.reset(window(policy.info, episodes), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_center_and_raster_repeat() -> None:
    crops = looked_at(center((0.5, 0.25)), replace(CONFIG, num_scenes=2), num_glimpses=6)
    assert (crops[..., :2] == 0).all() and crops[1, :, 2].tolist() == [1, 0.5, 0.25, 0.5, 0.25, 0.5]
    tiles = looked_at(raster(0.5), replace(CONFIG, num_scenes=2), num_glimpses=7)
    assert np.array_equal(tiles[0, 1:5], quadtree_viewpoints(levels=1)[1:])
    assert np.array_equal(tiles[0, 5:], tiles[0, 1:3])
    assert len(raster(0.25).table) == 16 and len(raster(0.05).table) == 400 and len(raster((0.5, 1.0)).table) == 5
    covering = raster(0.3).table  # no whole number of tiles: sixteen that overlap
    assert len(covering) == 16 and covering[0].tolist() == pytest.approx([-0.7, -0.7, 0.3])


@pytest.fixture
def any_grid_probe(tmp_path: Path) -> str:
    """The shipped probe without the record of the canvas grid it was fitted on, which would refuse others."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(asset_dir("nano-segmentation-probe") / name, tmp_path / name)
    return str(tmp_path)


@pytest.mark.parametrize("grid", [16, 12])
def test_entropy_greedy_takes_the_window_that_adds_most(grid: int, any_grid_probe: str) -> None:
    """Against sums over cells, one window at a time, on grids that quadtree tiles fit and do not fit."""
    config = replace(CONFIG, num_scenes=3, canvas_grid=grid, probe=any_grid_probe)
    policy = EntropyGreedy(scale=(0.5, 0.25), centers=5)
    episodes = episodes_of(config, np.arange(3))
    seen = window(policy.info, episodes)
    policy.reset(seen, seed=0)
    seen_at = np.full((3, grid, grid), 1.0)
    cells = (2 * np.arange(grid) + 1) / grid - 1
    for t in range(4):
        chosen = policy.viewpoints(t, seen)
        assert episodes.logits is not None
        log_p = episodes.logits.log_softmax(dim=1).numpy()
        entropy = -(np.exp(log_p) * log_p).sum(axis=1)
        for row in range(3 if t else 0):
            worth = []
            for center_row, center_col, scale in policy.candidates:
                share = [np.clip((scale - np.abs(cells - c)) * grid / 2 + 0.5, 0, 1) for c in (center_row, center_col)]
                octaves = np.maximum(np.log2(seen_at[row] / scale), 0)
                worth.append((entropy[row] * octaves * share[0][:, None] * share[1]).sum())
            best = int(np.argmax(worth))
            assert chosen[row].tolist() == policy.candidates[best].tolist(), (t, row)
        episodes.step_rows(episodes.all_rows, chosen)
        for row, (center_row, center_col, scale) in enumerate(chosen):
            inside = (np.abs(cells - center_row) <= scale)[:, None] & (np.abs(cells - center_col) <= scale)
            seen_at[row] = np.where(inside, np.minimum(seen_at[row], scale), seen_at[row])


def test_entropy_greedy_goes_on_when_everything_has_been_seen() -> None:
    """Four quadrants are all there is at this scale; after them windows of highest mean entropy, not the first row."""
    viewpoints = looked_at(EntropyGreedy(scale=0.5, centers=2), replace(CONFIG, num_scenes=8), num_glimpses=7)
    assert all(len({tuple(v) for v in row.tolist()}) == 4 for row in viewpoints[:, 1:5])
    assert len({row.tobytes() for row in viewpoints[:, 5]}) > 1


def test_quadtree_beam_descends_only_into_what_it_looked_at() -> None:
    viewpoints = looked_at(QuadtreeBeam(num_glimpses=21, width=2), replace(CONFIG, num_scenes=4), num_glimpses=21)
    every = sorted(map(tuple, quadtree_viewpoints(levels=2).tolist()))
    for row in viewpoints:
        assert row[:6, 2].tolist() == [1, 0.5, 0.5, 0.25, 0.25, 0.5]
        for tile in row[3:5]:  # sixteenths inside one of the two quadrants looked at
            assert any((np.abs(tile[:2] - quadrant[:2]) < 0.5).all() for quadrant in row[1:3])
        assert sorted(map(tuple, row.tolist())) == every, "each of the 21 tiles once"
    assert len({row[:5].tobytes() for row in viewpoints}) > 1


def test_quadtree_beam_as_wide_as_the_tree_is_entropy_guided_coarse_to_fine() -> None:
    config = replace(CONFIG, num_scenes=4)
    beam = looked_at(QuadtreeBeam(num_glimpses=8, width=16), config, num_glimpses=8)
    paper = looked_at(PaperPolicy("entropy_coarse_to_fine", num_glimpses=8), config, num_glimpses=8)
    assert np.array_equal(beam, paper)


def test_windows_hold_what_they_cover() -> None:
    table = np.concatenate([grid_viewpoints(scales=(0.5, 0.3), centers=4), np.array([(0, 0, 1)], dtype=np.float32)])
    windows = Windows(table, size=12, device=torch.device("cpu"))
    ones = torch.ones(1, 12, 12)
    np.testing.assert_allclose(windows.sums(ones)[0], 144 * table[:, 2] ** 2, rtol=1e-5)
    np.testing.assert_allclose(windows.area, 144 * table[:, 2] ** 2, rtol=1e-5)
    added = windows.added(ones, torch.full((1, 12, 12), 0.5))[0].numpy()
    np.testing.assert_allclose(added, 144 * table[:, 2] ** 2 * np.maximum(np.log2(0.5 / table[:, 2]), 0), atol=1e-4)


def test_spectral_residual_finds_the_odd_one_out() -> None:
    """One bar across a regular texture of bars."""
    rows, cols = np.mgrid[:64, :64]
    image = torch.from_numpy(np.sin(rows * 2 * math.pi / 8)).float()
    image[20:32, 40:52] = torch.from_numpy(np.sin(cols * 2 * math.pi / 8)).float()[20:32, 40:52]
    saliency = spectral_residual(image[None], size=64)[0]
    assert saliency.sum().item() == pytest.approx(1, abs=1e-4)
    assert saliency[16:36, 36:56].mean() > 3 * saliency.mean()


def test_saliency_sees_only_the_first_glimpse_and_moves_on() -> None:
    """Pixels that the first glimpse does not show change nothing: two scenes that look the same at its resolution."""
    config = replace(CONFIG, num_scenes=4)
    policy = make_policy("saliency(scale=0.3)", config=config, num_glimpses=5)
    episodes, hidden = episodes_of(config, np.arange(4)), episodes_of(config, np.arange(4))
    assert hidden.images is not None
    glimpse_px, scene_px = hidden.backbone.glimpse_size_px, hidden.backbone.scene_size_px
    stride = scene_px // glimpse_px
    # A glimpse of the full scene averages the middle of each block of pixels (bilinear); the corner is never seen.
    hidden.images = hidden.images.clone()  # the batch's own may be changed in inference mode only
    hidden.images[:, :, ::stride, ::stride] += 3
    sequences = []
    for batch in (episodes, hidden):
        seen = window(policy.info, batch)
        policy.reset(seen, seed=0)
        for t in range(5):
            batch.step_rows(batch.all_rows, policy.viewpoints(t, seen))
        sequences.append(batch.viewpoints)
    assert np.array_equal(*sequences)
    assert len({tuple(v) for v in sequences[0][0].tolist()}) == 5, "inhibition of return"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("corse_to_fine", r"unknown policy 'corse_to_fine'; did you mean 'coarse_to_fine'\? There are: full_then_"),
        ("ppo", r"unknown policy 'ppo'; there are: .*canvit_gym.policies.load_policy"),
        ("center(0.5)", r"cannot read policy 'center\(0.5\)'.*key=value"),
        ("center(scale=0.5, scale=0.4)", r"cannot read policy .*; scale is given twice"),
        ("center(scale=", r"cannot read policy"),
        ("center(scale=open('x'))", r"cannot read policy"),
        ("", r"cannot read policy ''"),
        ("center(size=0.5)", r"policy 'center' has no argument size; it takes scale=0.55"),
        ("center(scale=1.5)", r"scale must be a number in \[0.001, 1\].*got 1.5"),
        ("center(scale=1e-9)", r"scale must be a number in \[0.001, 1\].*got 1e-09"),
        ("raster(scale=1e-5)", r"scale must be a number in \[0.001, 1\].*got 1e-05"),
        ("entropy_greedy(scale=(0.5, 0.5))", r"scale must be .* tuple of distinct ones, got \(0.5, 0.5\)"),
        ("entropy_greedy(centers=1.5)", r"^centers must be an integer >= 1, got 1.5"),
        ("saliency(centers=0)", r"^centers must be an integer >= 1, got 0"),
        ("quadtree_beam(width=True)", r"width must be an integer >= 1, got True"),
        ("center(scale='big')", r"scale must be a number"),
        ("raster(scale=())", r"scale must be a number"),
        ("saliency(scale=1.0)", r"scales must be below 1"),
        ("quadtree_beam(width=0)", r"width must be an integer >= 1, got 0"),
        ("random(random_stream='x')", r"random_stream must be one of scene, batch, got 'x'"),
        ("greedy_oracle(max_candidates=0)", r"max_candidates must be an integer >= 1, got 0"),
        ("greedy_oracle(max_candidates='x')", r"max_candidates must be an integer >= 1, got 'x'"),
        ("greedy_oracle(candidates='all')", r"candidates must be 'default' or 'actions', got 'all'"),
        ("greedy_oracle(half='left')", r"half must be one of even, odd, got 'left'"),
        ("greedy_oracle(half='odd', block=0)", r"block must be an integer >= 1, got 0"),
        ("best_fixed_sequence(num_scenes=0)", r"num_scenes must be an integer >= 1, got 0"),
        ("best_fixed_sequence(path='nowhere.json')", r"no fixed sequence at nowhere.json"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_policy(spec, config=CONFIG, num_glimpses=5)


def test_specs_carry_their_arguments() -> None:
    assert parse_spec(" raster( scale=(0.5, 0.25) ) ") == ("raster", {"scale": (0.5, 0.25)})
    assert make_policy("raster(scale=0.5)", config=CONFIG, num_glimpses=5).info.name == "raster(scale=0.5)"
    assert make_policy("raster", config=CONFIG, num_glimpses=5).info.name == "raster"


def test_grids_that_are_no_power_of_two(any_grid_probe: str) -> None:
    odd = replace(CONFIG, num_scenes=2, canvas_grid=12, probe=any_grid_probe)
    for name in ("entropy_coarse_to_fine", "quadtree_beam"):
        with pytest.raises(ValueError, match=r"power of two, but this one is 12; choose another"):
            make_policy(name, config=odd, num_glimpses=5)
        with pytest.raises(ValueError, match="power of two"):
            evaluate(make_policy(name, config=CONFIG, num_glimpses=5), config=odd)
    for name in ("coarse_to_fine", "entropy_greedy", "saliency", "greedy_oracle(max_candidates=2)"):
        assert looked_at(make_policy(name, config=odd, num_glimpses=3), odd, num_glimpses=3).shape == (2, 3, 3)


@pytest.mark.parametrize("name", ["coarse_to_fine", "quadtree_beam"])
def test_budgets_longer_than_a_policy_was_made_for(name: str) -> None:
    policy = make_policy(name, config=CONFIG, num_glimpses=3)
    with pytest.raises(ValueError, match=r"num_glimpses=4"):
        evaluate(policy, config=CONFIG, num_glimpses=4)
    assert looked_at(policy, num_glimpses=2).shape == (8, 2, 3)
    with pytest.raises(ValueError, match="num_glimpses must be an integer >= 1, got 0"):
        make_policy(name, config=CONFIG, num_glimpses=0)


@pytest.mark.parametrize("config", [CONFIG, CLASSIFICATION], ids=["segmentation", "classification"])
def test_item_probability_looks_at_items(config: EnvConfig) -> None:
    """More often than a window in the middle of the scene does, whatever the task reads."""
    config = replace(config, num_scenes=16)
    scenes = build_scenes(config)
    assert isinstance(scenes, LocatedSource)
    hits = {}
    for spec in ("item_probability(scale=0.25)", "center(scale=0.25)"):
        found = evaluate(make_policy(spec, config=config, num_glimpses=2), config=config, num_glimpses=2)
        row, col, scale = found.viewpoints[:, 1].T
        hits[spec] = sum(
            any(max(abs(item.row - r), abs(item.col - c)) < s for item in scenes.items(index))
            for index, r, c, s in zip(found.scene.tolist(), row, col, scale, strict=True)
        )
    assert hits["item_probability(scale=0.25)"] >= 10 > hits["center(scale=0.25)"]
