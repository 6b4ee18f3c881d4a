"""Hand-coded and learned policies behind one protocol.

`make_policy` makes a hand-coded policy by name, `load_policy` loads a trained one.
"""

from canvit_gym.policies.entropy import EntropyGreedy, QuadtreeBeam
from canvit_gym.policies.fixed_sequence import BestFixedSequence, FixedSequence, search_fixed_sequence
from canvit_gym.policies.jitter import Jittered
from canvit_gym.policies.label_split import HalfLoss
from canvit_gym.policies.learned import LearnedPolicy, load_policy
from canvit_gym.policies.locator import BoxLocator, WindowLocator
from canvit_gym.policies.oracle import GreedyOracle, jittered_oracle, oracle_candidates
from canvit_gym.policies.paper import PaperPolicy
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo, check_supported, supported_tasks
from canvit_gym.policies.registry import (
    POLICY_NAMES,
    POLICY_SPECS,
    is_trained,
    make_policy,
    parse_spec,
    policies_table,
    register_policy,
)
from canvit_gym.policies.saliency import SpectralResidualSaliency
from canvit_gym.policies.seen import Seen, SeenWithTruth, window
from canvit_gym.policies.sequences import CycledViewpoints, center, raster
from canvit_gym.policies.spec import Context, PolicySpec

__all__ = [
    "POLICY_NAMES",
    "POLICY_SPECS",
    "BestFixedSequence",
    "BoxLocator",
    "Context",
    "CycledViewpoints",
    "EntropyGreedy",
    "FixedSequence",
    "GlimpsePolicy",
    "GreedyOracle",
    "HalfLoss",
    "Jittered",
    "LearnedPolicy",
    "PaperPolicy",
    "PolicyInfo",
    "PolicySpec",
    "QuadtreeBeam",
    "Seen",
    "SeenWithTruth",
    "SpectralResidualSaliency",
    "WindowLocator",
    "center",
    "check_supported",
    "is_trained",
    "jittered_oracle",
    "load_policy",
    "make_policy",
    "oracle_candidates",
    "parse_spec",
    "policies_table",
    "raster",
    "register_policy",
    "search_fixed_sequence",
    "supported_tasks",
    "window",
]
