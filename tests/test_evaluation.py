"""Exact evaluation agrees with canvit-pytorch's own rollouts and metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canvit_pytorch.benchmarks.ade20k import MeanIoU
from canvit_pytorch.episode import run_episode
from canvit_pytorch.policies import PolicyName, make_policy
from canvit_pytorch.preprocess import imagenet_normalize

from canvit_gym.config import EnvConfig, build_backbone, build_scenes, build_task
from canvit_gym.evaluation import Evaluation, evaluate, paired_bootstrap, record_views
from canvit_gym.policies import GreedyOracle, PaperPolicy, oracle_candidates
from canvit_gym.tasks.classification import ClassificationTask
from canvit_gym.tasks.segmentation import SegmentationTask

CONFIG = EnvConfig(split="validation", num_scenes=20, device="cpu")
CLASSIFICATION = replace(CONFIG, dataset="fashion-classification")
PAPER: list[PolicyName] = [
    "full_then_random",
    "random",
    "coarse_to_fine",
    "fine_to_coarse",
    "entropy_coarse_to_fine",
    "repeated_full_scene",
]


@pytest.mark.parametrize("name", PAPER)
def test_segmentation_numbers_are_canvit_pytorchs_own(name: PolicyName) -> None:
    """The same seed and batches, once through `evaluate`, once through run_episode, its probe and its MeanIoU."""
    batch_size, num_glimpses = 8, 6
    ours = evaluate(
        PaperPolicy(name, num_glimpses=num_glimpses),
        config=CONFIG,
        num_glimpses=num_glimpses,
        batch_size=batch_size,
        seed=3,
    )
    backbone, scenes = build_backbone(CONFIG), build_scenes(CONFIG)
    task = build_task(CONFIG, backbone, scenes.classes)
    assert isinstance(task, SegmentationTask)
    mious = [MeanIoU(device=torch.device("cpu"), num_classes=len(task.classes)) for _ in range(num_glimpses)]
    viewpoints = []
    torch.manual_seed(3)
    with torch.no_grad():
        for indices in np.array_split(np.arange(20), [8, 16]):
            batch = scenes.load(indices)
            policy = make_policy(
                name,
                batch_size=len(indices),
                device=torch.device("cpu"),
                num_glimpses=num_glimpses,
                canvas_grid_size=16,
                canvas_logits=task.model.logits,
            )
            steps = run_episode(
                canvit=backbone.canvit,
                images=imagenet_normalize(batch.images.float() / 255),
                policy=policy,
                num_glimpses=num_glimpses,
                glimpse_size_px=32,
                initial_state=backbone.init_state(len(indices)),
            )
            for step in steps:
                logits = task.model.logits(step.state.canvas)
                up = F.interpolate(logits, size=(128, 128), mode="bilinear", align_corners=False)
                mious[step.t].update(up.argmax(dim=1), batch.labels.long())
            viewpoints.append(
                torch.stack([torch.cat([s.viewpoint.centers, s.viewpoint.scales[:, None]], 1) for s in steps], 1)
            )
    assert np.array_equal(ours.viewpoints, torch.cat(viewpoints).numpy())
    # Two float32 orders of the same sums: a pixel on a class border may change sides.
    np.testing.assert_allclose(ours.score(), [m.compute() for m in mious], atol=1e-4)


def test_classification_numbers_are_canvit_pytorchs_own() -> None:
    ours = evaluate(PaperPolicy("coarse_to_fine", num_glimpses=5), config=CLASSIFICATION, batch_size=20, seed=1)
    backbone, scenes = build_backbone(CLASSIFICATION), build_scenes(CLASSIFICATION)
    task = build_task(CLASSIFICATION, backbone, scenes.classes)
    assert isinstance(task, ClassificationTask)
    batch = scenes.load(np.arange(20))
    torch.manual_seed(1)
    with torch.no_grad():
        policy = make_policy(
            "coarse_to_fine", batch_size=20, device=torch.device("cpu"), num_glimpses=5, canvas_grid_size=16
        )
        steps = run_episode(
            canvit=backbone.canvit,
            images=imagenet_normalize(batch.images.float() / 255),
            policy=policy,
            num_glimpses=5,
            glimpse_size_px=32,
            initial_state=backbone.init_state(20),
        )
        logits = [task.model.classify(s.state.recurrent_cls) for s in steps]
    top1 = [(step.argmax(dim=1) == batch.labels).float().mean().item() for step in logits]
    loss = [F.cross_entropy(step, batch.labels).item() for step in logits]
    np.testing.assert_allclose(ours.score(), top1, atol=1e-6)
    np.testing.assert_allclose(ours.mean_loss(), loss, rtol=1e-5)


def test_every_scene_once_in_order_and_whatever_the_batch_size() -> None:
    policy = PaperPolicy("entropy_coarse_to_fine", num_glimpses=5)
    one, other = (evaluate(policy, config=CONFIG, batch_size=size) for size in (20, 7))
    assert one.scene.tolist() == other.scene.tolist() == list(range(20))
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4)
    assert one.loss.shape == (20, 5) and one.viewpoints.shape == (20, 5, 3)


def test_evaluation_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    evaluate(PaperPolicy("random", num_glimpses=5), config=replace(CONFIG, num_scenes=4))
    assert torch.equal(before, torch.get_rng_state())


def test_oracle_takes_the_candidate_with_the_lowest_loss_afterwards() -> None:
    """No other candidate for the second glimpse gives any scene a lower loss than the one that the oracle took."""
    config = replace(CONFIG, num_scenes=6)
    candidates = oracle_candidates()[::12]
    oracle = evaluate(GreedyOracle(candidates), config=config, num_glimpses=2)

    class Fixed:
        def __init__(self, viewpoint: np.ndarray) -> None:
            self.sequence = np.stack([np.array([0, 0, 1], dtype=np.float32), viewpoint])

        def begin(self, batch_size: int, device: torch.device) -> None:
            self.batch_size = batch_size

        def viewpoints(self, t: int, episodes: object) -> np.ndarray:
            return np.tile(self.sequence[t], (self.batch_size, 1))

    others = np.stack([evaluate(Fixed(c), config=config, num_glimpses=2).loss[:, 1] for c in candidates])
    np.testing.assert_allclose(oracle.loss[:, 1], others.min(axis=0), rtol=1e-4)
    assert others.max() > others.min()


def test_score_of_resampled_scenes_and_paired_interval() -> None:
    intersection = np.array([[[1, 0]], [[3, 2]]])
    union = np.array([[[2, 0]], [[3, 4]]])
    result = Evaluation(
        scene=np.arange(2),
        viewpoints=np.zeros((2, 1, 3), np.float32),
        loss=np.zeros((2, 1), np.float32),
        intersection=intersection,
        union=union,
        metric="mIoU",
    )
    assert result.score()[0] == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert result.score(np.array([0, 0]))[0] == pytest.approx(1 / 2)  # the absent class does not count
    values = np.linspace(0, 1, 400)
    low, high = paired_bootstrap(lambda scenes: float(values[scenes].mean()), num_scenes=400)
    half_width = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(0.5 - half_width, abs=0.005) and high == pytest.approx(0.5 + half_width, abs=0.005)


def test_views_for_pictures_are_those_scenes_after_every_glimpse() -> None:
    views = record_views(
        PaperPolicy("coarse_to_fine", num_glimpses=3), config=CONFIG, rows=np.array([1, 4]), num_glimpses=3
    )
    assert [[len(v.viewpoints) for v in scene] for scene in views] == [[1, 2, 3], [1, 2, 3]]
    batch = build_scenes(CONFIG).load(np.array([4]))
    assert np.array_equal(views[1][0].image, batch.images[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("bad", [dict(batch_size=0), dict(num_glimpses=0)])
def test_bad_sizes_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1, got"):
        evaluate(PaperPolicy("random", num_glimpses=5), config=CONFIG, **bad)  # type: ignore[arg-type]


def test_entropy_policy_says_that_it_needs_a_segmentation_probe() -> None:
    with pytest.raises(ValueError, match="choose another policy"):
        evaluate(PaperPolicy("entropy_coarse_to_fine", num_glimpses=5), config=CLASSIFICATION)
