"""Every network and distribution: right probabilities, the mask of what was seen, and files that hold them."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.ppo.policy import ViewpointPolicy
from canvit_gym.actions import ContinuousActions, DiscreteActions, grid_viewpoints, quadtree_viewpoints
from canvit_gym.observations import GAZE_LENGTH, update_acuity
from canvit_gym.policies.distributions import BoundedBeta, TanhGaussian
from canvit_gym.policies.networks import NETWORKS, action_options
from canvit_gym.viewpoints import FULL_SCENE, to_viewpoint

SPACE = spaces.Dict(
    {
        "canvas": spaces.Box(-12, 12, (16, 8, 8)),
        "uncertainty": spaces.Box(0, 1, (1, 16, 16)),
        "acuity": spaces.Box(0, 1, (1, 16, 16)),
        "viewpoint": spaces.Box(-1, 1, (3,)),
        "time": spaces.Box(0, 1, (1,)),
    }
)
GRID = DiscreteActions(grid_viewpoints(scales=(0.5, 0.25), centers=4), allow_stop=True)
DISTRIBUTIONS: dict[str, Any] = {"tanh_gaussian": TanhGaussian, "beta": BoundedBeta}


def make_policy(actions: Any, space: spaces.Dict = SPACE, **kwargs: Any) -> ViewpointPolicy:
    torch.manual_seed(0)
    options: dict[str, Any] = action_options(actions) | {"channels": 8, "context_dim": 16, "blocks": 2} | kwargs
    return ViewpointPolicy(space, actions.space, lambda _: 1e-3, **options)


def observations(count: int, space: spaces.Dict = SPACE) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: torch.rand(count, *(box.shape or ()), generator=generator) for key, box in space.items()}


def distribution(name: str) -> Any:
    """One row, two dimensions, neither symmetric nor wide."""
    if name == "beta":
        return BoundedBeta(torch.tensor([[0.5, 3.0, 2.0, -1.0]]))
    return TanhGaussian(torch.tensor([[0.3, -1.2]]), torch.tensor([-0.7, 0.2]))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_map_of_the_goal_is_seen(network: str) -> None:
    """With reading maps that are swapped and a goal that names the other one, viewpoints are scored alike."""
    space = spaces.Dict({"goal": spaces.Box(0, 1, (2,)), "reading": spaces.Box(0, 1, (2, 8, 8))})
    trunk = NETWORKS[network][0](space, channels=8, context_dim=16, blocks=1)
    assert trunk.reads_goal and not NETWORKS[network][0](SPACE).reads_goal
    trunk.from_maps.weight.data[:, :2] = 0  # nothing of the maps of both classes
    next(trunk.context.parameters()).data[:, :2] = 0  # nor of the goal itself
    first, second = torch.rand(2, 1, 8, 8)
    seen = trunk({"goal": torch.tensor([[1.0, 0.0]]), "reading": torch.cat([first, second])[None]}).map
    swapped = trunk({"goal": torch.tensor([[0.0, 1.0]]), "reading": torch.cat([second, first])[None]}).map
    other = trunk({"goal": torch.tensor([[0.0, 1.0]]), "reading": torch.cat([first, second])[None]}).map
    assert torch.equal(seen, swapped) and not torch.equal(seen, other)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_densities_integrate_to_one_and_give_the_entropy(name: str) -> None:
    """Against numerical integration over the square."""
    side = 1600
    axis = (2 * torch.arange(side) + 1) / side - 1
    actions = torch.cartesian_prod(axis, axis)
    density = distribution(name)
    log_prob = density.log_prob(actions).double()
    cell = (2 / side) ** 2
    assert log_prob.exp().sum() * cell == pytest.approx(1, abs=2e-3)
    entropy = -(log_prob.exp() * log_prob).sum() * cell
    assert density.entropy().item() == pytest.approx(entropy.item(), abs=5e-3)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_follow_the_density(name: str) -> None:
    torch.manual_seed(0)
    wide = distribution(name)
    if name == "beta":
        many = BoundedBeta(torch.tensor([[0.5, 3.0, 2.0, -1.0]]).expand(20_000, -1))
    else:
        many = TanhGaussian(torch.tensor([[0.3, -1.2]]).expand(20_000, -1), torch.tensor([-0.7, 0.2]))
    samples = many.sample()
    assert samples.abs().max() < 1
    # The mean log-probability of samples is minus the entropy.
    assert -many.log_prob(samples).mean().item() == pytest.approx(wide.entropy().item(), abs=0.03)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_extreme_parameters_stay_finite(name: str) -> None:
    parameters = torch.tensor([[40.0, -40.0], [-40.0, 40.0], [9.0, 9.0]], requires_grad=True)
    density = BoundedBeta(parameters) if name == "beta" else TanhGaussian(parameters, torch.tensor([-5.0, 2.0]))
    total = density.log_prob(density.sample().detach()).sum() + density.entropy().sum()
    total.backward()
    assert total.isfinite() and parameters.grad is not None and parameters.grad.isfinite().all()
    assert density.mode.abs().max() <= 1


def test_the_mode_of_a_beta_that_is_nearly_uniform() -> None:
    """a - 1 and b - 1 are lost in float32, what they are to each other is not."""
    density = BoundedBeta(torch.tensor([[-20.0, -20.0], [-20.0, -22.0], [-200.0, -200.0]]))
    share = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(density.mode.flatten(), [0, 2 * share - 1, 0], atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["grid", "quadtree", "gaussian", "tanh_gaussian", "beta"])
def test_every_network_and_action_acts_and_learns(network: str, kind: str) -> None:
    actions: Any = {
        "grid": GRID,
        "quadtree": DiscreteActions(quadtree_viewpoints(levels=2)),
    }.get(kind, ContinuousActions(allow_stop=True))
    continuous: dict[str, Any] = {} if kind in ("grid", "quadtree") else {"distribution": kind}
    policy = make_policy(actions, network=network, **continuous)
    given = observations(6)
    chosen, values, log_prob = policy(given)
    assert chosen.shape == (6, *(actions.space.shape or ())) and values.shape == (6, 1)
    again, log_prob_again, entropy = policy.evaluate_actions(given, chosen.detach())
    torch.testing.assert_close(log_prob_again, log_prob)
    assert entropy is not None
    if kind != "gaussian" and continuous:
        assert chosen.abs().max() < 1
    (log_prob_again.sum() + again.sum() + entropy.sum()).backward()
    silent = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Attention over the control's one cell has nothing to learn.
    assert silent == (["action_net.attention.weight"] if network == "mlp" and continuous else [])
    rebuilt = ViewpointPolicy(**policy._get_constructor_parameters())
    rebuilt.load_state_dict(policy.state_dict())
    assert torch.equal(rebuilt.evaluate_actions(given, chosen.detach())[1], log_prob_again)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_network_can_know(network: str) -> None:
    """A map turned upside down changes the scores; not those of the control that averages it."""
    policy = make_policy(GRID, network=network)
    with torch.no_grad():
        head: Any = policy.action_net
        for layer in head.last_layers:
            layer.weight.mul_(100)
    given = observations(4)
    turned = {key: value.flip(2, 3) if value.ndim == 4 else value for key, value in given.items()}
    logits = [policy.get_distribution(g).distribution.logits for g in (given, turned)]  # type: ignore[union-attr]
    assert torch.allclose(*logits, atol=1e-4) == (network == "mlp")


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_mask_knows_what_was_seen(shuffled: bool, dtype: torch.dtype) -> None:
    table = grid_viewpoints(scales=(0.5, 0.3), centers=5)
    if shuffled:
        table = table[np.random.default_rng(0).permutation(len(table))]
    actions = DiscreteActions(table, allow_stop=True)
    policy = make_policy(actions, mask_seen=True)
    given = observations(2)
    acuity = update_acuity(torch.zeros(2, 16, 16), to_viewpoint(np.tile(FULL_SCENE, (2, 1)), torch.device("cpu")))

    def probabilities() -> torch.Tensor:
        seen = given | {"acuity": acuity[:, None].to(dtype)}
        return policy.get_distribution(seen).distribution.probs  # type: ignore[union-attr]

    assert (probabilities() > 0).all()
    taken: list[int] = []
    for index in (3, 17, 30):
        acuity = update_acuity(acuity, to_viewpoint(np.tile(table[index], (2, 1)), torch.device("cpu")))
        taken.append(index)
        now = probabilities()
        assert (now[:, taken] == 0).all() and (now[:, -1] > 0).all()
        unseen = [i for i in range(len(table)) if (now[:, i] > 0).all()]
        for i in range(len(table)):  # by definition: a cell of the window that no glimpse saw at this scale
            window = update_acuity(torch.zeros(1, 16, 16), to_viewpoint(table[i : i + 1], torch.device("cpu")))[0] > 0
            fresh = (acuity[0][window] > table[i, 2]).any()
            assert bool(fresh) == (i in unseen), i
    torch.testing.assert_close(now.sum(dim=1), torch.ones(2))
    _, log_prob, entropy = policy.evaluate_actions(given | {"acuity": acuity[:, None].to(dtype)}, now.argmax(dim=1))
    assert entropy is not None and entropy.isfinite().all() and log_prob.isfinite().all()
    acuity = torch.full_like(acuity, 0.1)  # all seen: no mask rather than no action
    assert (probabilities() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gaze_is_inhibited_from_returning(dtype: torch.dtype) -> None:
    table = grid_viewpoints(scales=(0.5, 0.3), centers=5)  # centers 0.25 and 0.35 apart
    actions = DiscreteActions(table[np.random.default_rng(0).permutation(len(table))], allow_stop=True)
    table = actions.viewpoints
    gaze = torch.zeros(2, GAZE_LENGTH, 3)
    gaze[0, 2], gaze[0, 5], gaze[1, 0] = (torch.from_numpy(table[i]) for i in (7, 31, 12))
    given = observations(2) | {"gaze": gaze.flatten(1).to(dtype)}
    space = spaces.Dict({**SPACE.spaces, "gaze": spaces.Box(-1, 1, (3 * GAZE_LENGTH,), np.float32)})
    for distance, count in ((0.0, (2, 1)), (0.26, None)):
        policy = make_policy(actions, space=space, inhibition=distance)
        probabilities = policy.get_distribution(given).distribution.probs.detach().numpy()  # type: ignore[union-attr]
        for row, taken in enumerate(([7, 31], [12])):
            off = [
                (table[:, 2] == table[i, 2]) & (np.abs(table[:, :2] - table[i, :2]).max(axis=1) <= distance + 1e-4)
                for i in taken
            ]
            assert np.array_equal(probabilities[row, :-1] == 0, np.any(off, axis=0))
            assert probabilities[row, -1] > 0 and (count is None or (probabilities[row] == 0).sum() == count[row])
    everything = make_policy(actions, space=space, inhibition=3.0)
    given["gaze"][:, :6] = torch.from_numpy(np.append(table[0], table[table[:, 2] != table[0, 2]][0]))
    assert (everything.get_distribution(given).distribution.probs > 0).all()  # type: ignore[union-attr]


def test_unknown_options_are_refused() -> None:
    blind = spaces.Dict({key: box for key, box in SPACE.items() if key != "acuity"})
    refused: list[tuple[dict[str, Any], str]] = [
        ({"network": "lstm"}, "unknown network 'lstm'; choose one of conv, window, pointer, mlp"),
        ({"distribution": "beta"}, r"'beta' is for action='continuous'"),
        ({"network": "pointer", "separable": True}, "separable is an option of the network 'conv'"),
        ({"network": "pointer", "channels": 7}, "multiple of 2 attention heads, got 7"),
        ({"space": blind, "mask_seen": True}, "`acuity` among the observations"),
        ({"inhibition": 0.0}, "`gaze` among the observations"),
    ]
    for kwargs, message in refused:
        with pytest.raises(ValueError, match=message):
            make_policy(GRID, **kwargs)
    with pytest.raises(ValueError, match="unknown distribution 'cauchy'"):
        make_policy(ContinuousActions(), distribution="cauchy")
    with pytest.raises(ValueError, match="mask_seen needs a table"):
        make_policy(ContinuousActions(), mask_seen=True)
