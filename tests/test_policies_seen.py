"""What policies are shown: no labels and no unseen pixels, unless they say that they use labels."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from test_policies import CEILINGS, CLASSIFICATION, CONFIG, ORDER, QUICK, episodes_of

from canvit_gym.actions import DiscreteActions, quadtree_viewpoints
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import (
    POLICY_SPECS,
    Context,
    CycledViewpoints,
    PolicyInfo,
    Seen,
    SeenWithTruth,
    center,
    make_policy,
    policies_table,
    register_policy,
    supported_tasks,
    window,
)

PAIRS = [
    (name, config)
    for name, spec in POLICY_SPECS.items()
    for config in ((ORDER,) if spec.info.needs_table else (CONFIG, CLASSIFICATION))
    if config.dataset.removeprefix("fashion-") in supported_tasks(spec.info)
]


class Peeked(Exception):
    """Somebody read what is not shown."""


class _Hidden(Mapping[str, Any]):
    """A truth that raises whoever reads it."""

    def __getitem__(self, name: str) -> NoReturn:
        raise Peeked(name)

    def __iter__(self) -> Iterator[str]:
        raise Peeked

    def __len__(self) -> int:
        raise Peeked


class _Blind:
    """A source of scenes that tells nothing of them."""

    def __getattr__(self, name: str) -> NoReturn:
        raise Peeked(name)


def decided(policy: Any, episodes: EpisodeBatch, t: int, seen: Seen) -> np.ndarray:
    """The policy's choice, made while the truth raises."""
    truth, scenes = episodes.truth, episodes.scenes
    episodes.truth, episodes.scenes = _Hidden(), _Blind()  # type: ignore[assignment]
    try:
        if t == 0:
            policy.reset(seen, seed=0)
        return policy.viewpoints(t, seen)
    finally:
        episodes.truth, episodes.scenes = truth, scenes


@pytest.mark.parametrize(("name", "config"), PAIRS, ids=lambda value: getattr(value, "dataset", value))
def test_no_policy_reads_the_truth_unless_it_says_so(name: str, config: EnvConfig) -> None:
    info = POLICY_SPECS[name].info
    policy = make_policy(QUICK.get(name, name), config=config, num_glimpses=4)
    episodes = episodes_of(config, np.arange(3), budget=4)
    seen = window(policy.info, episodes)
    assert isinstance(seen, SeenWithTruth) == info.uses_labels == (name in CEILINGS)
    if info.uses_labels:
        with pytest.raises(Peeked):
            for t in range(2):
                decided(policy, episodes, t, seen)
        with pytest.raises(TypeError, match="must be handed SeenWithTruth"):
            policy.reset(Seen(episodes), seed=0)
        return
    for t in range(4):
        episodes.step_rows(episodes.all_rows, decided(policy, episodes, t, seen))


@pytest.mark.parametrize(
    "name",
    ["truth", "labels", "images", "items", "outcomes_after", "loss", "score", "potentials", "curves", "scenes", "view"],
)
def test_the_window_has_no_truth(name: str) -> None:
    seen = Seen(episodes_of(CONFIG, np.arange(1)))
    with pytest.raises(AttributeError, match=f"'{name}' is hidden from policies that do not use labels"):
        getattr(seen, name)
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        _ = seen.anything  # type: ignore[attr-defined]


def test_the_window_is_read_only_and_current() -> None:
    episodes = episodes_of(CONFIG, np.array([5, 2]))
    seen = Seen(episodes)
    assert seen.num == 2 and seen.scene.tolist() == [5, 2] and seen.taken.tolist() == [0, 0]
    for array in (seen.scene, seen.taken, seen.viewpoints):
        array[:] = 1
    assert seen.scene.tolist() == [5, 2] and not seen.taken.any() and not seen.viewpoints.any()
    with pytest.raises(AttributeError):
        seen.budget = 3  # type: ignore[misc]
    where = np.array([[0, 0, 1], [0.5, 0.5, 0.5]], dtype=np.float32)
    with pytest.raises(ValueError, match="glimpse 0 has not been taken: there are 0 so far"):
        seen.glimpse(0)
    episodes.step_rows(episodes.all_rows, where)
    assert seen.taken.tolist() == [1, 1] and np.array_equal(seen.viewpoints[:, 0], where)
    assert seen.uncertainty.shape == (2, 16, 16) and (seen.uncertainty >= 0).all()
    assert episodes.images is not None
    quadrant = episodes.images[1:, :, 64:, 64:].unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(seen.glimpse(0)[1:], quadrant)


def test_a_window_before_any_reading() -> None:
    class Asks(CycledViewpoints):
        def viewpoints(self, t: int, seen: Seen) -> np.ndarray:
            assert seen.logits is not None
            return super().viewpoints(t, seen)

    base = center()
    with pytest.raises(RuntimeError, match="no glimpse was taken yet, so there is no reading"):
        evaluate(Asks(base.table, info=base.info), config=replace(CONFIG, num_scenes=1))


def test_without_revisit_the_window_says_what_is_allowed() -> None:
    episodes = episodes_of(CONFIG, np.arange(2))
    tiles = quadtree_viewpoints(levels=1)[1:]
    others = np.array([[0, 0, 0.5], *tiles[:2].tolist()], dtype=np.float32)
    assert Seen(episodes).allowed(others).all()
    assert Seen(episodes, actions=DiscreteActions(tiles)).allowed(others).all()
    seen = Seen(episodes, actions=DiscreteActions(tiles, revisit=False))
    assert seen.allowed(others).tolist() == [[False, True, True]] * 2
    episodes.step_rows(episodes.all_rows, tiles[[0, 3]])
    assert seen.allowed(tiles).tolist() == [[False, True, True, True], [True, True, True, False]]
    assert seen.allowed(others).tolist() == [[False, False, True], [False, True, True]]


def test_items_are_where_their_labels_are() -> None:
    for config in (CONFIG, CLASSIFICATION):
        episodes = episodes_of(config, np.arange(4))
        labels = episodes.truth["labels"].numpy()
        for row, items in enumerate(SeenWithTruth(episodes).items):
            for item in items:
                if config is CLASSIFICATION:
                    assert item.label == labels[row]
                    continue
                top, bottom, left, right = (
                    round((c + sign * item.scale + 1) * 64) for c in (item.row, item.col) for sign in (-1, 1)
                )
                box = labels[row, top:bottom, left:right]
                assert box.shape == (bottom - top, bottom - top)
                assert set(np.unique(box)) == {0, item.label}, "its box holds the item alone"


def test_items_of_a_source_that_has_none() -> None:
    episodes = episodes_of(CONFIG, np.arange(1))

    class Plain:
        name = "photographs"

    episodes.scenes = Plain()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="photographs does not record where its items are"):
        _ = SeenWithTruth(episodes).items


def _build(context: Context, *, scale: float = 0.5) -> CycledViewpoints:
    return CycledViewpoints(np.array([[0, 0, scale]], dtype=np.float32), info=POLICY_SPECS["mine"].info)


def test_policies_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvit_gym.policies.registry.POLICY_SPECS", specs := dict(POLICY_SPECS))
    monkeypatch.setitem(globals(), "POLICY_SPECS", specs)
    info = PolicyInfo(name="mine", paper_name="mine", description="Looks at the middle.", deterministic=True)
    register_policy("mine", _build, info)
    policy = make_policy("mine(scale=0.25)", config=CONFIG, num_glimpses=2)
    assert policy.info.name == "mine(scale=0.25)"
    result = evaluate(policy, config=replace(CONFIG, num_scenes=2), num_glimpses=2)
    assert (result.viewpoints[:, 1] == [0, 0, 0.25]).all()
    assert "| `mine` | Looks at the middle. |" in policies_table() and "`scale=0.5`" in policies_table()
    for name, build_info, message in (
        ("mine", info, "there is already a policy 'mine'"),
        ("center", info, "there is already a policy 'center'"),
        ("my own", info, "must be an identifier .* got 'my own'"),
        ("other", info, "registered as 'other', but its info.name is 'mine'"),
    ):
        with pytest.raises(ValueError, match=message):
            register_policy(name, _build, build_info)


def test_the_table_tells_of_every_policy() -> None:
    table = policies_table()
    assert all(f"| `{name}` |" in table for name in POLICY_SPECS)
    assert table.count("| Ceiling. ") == len(CEILINGS)
