"""Hand-coded policies behind one protocol. `make_policy` makes one by name; learned ones are in agents.learned."""

from canvit_gym.policies.entropy import EntropyGreedy, QuadtreeBeam
from canvit_gym.policies.fixed_sequence import BestFixedSequence, FixedSequence, search_fixed_sequence
from canvit_gym.policies.jitter import Jittered
from canvit_gym.policies.label_split import HalfLoss
from canvit_gym.policies.oracle import GreedyOracle, oracle_candidates
from canvit_gym.policies.paper import PaperPolicy
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo, check_supported
from canvit_gym.policies.registry import POLICY_NAMES, POLICY_SPECS, make_policy, parse_spec
from canvit_gym.policies.saliency import SpectralResidualSaliency
from canvit_gym.policies.sequences import CycledViewpoints, center, raster

__all__ = [
    "POLICY_NAMES",
    "POLICY_SPECS",
    "BestFixedSequence",
    "CycledViewpoints",
    "EntropyGreedy",
    "FixedSequence",
    "GlimpsePolicy",
    "GreedyOracle",
    "HalfLoss",
    "Jittered",
    "PaperPolicy",
    "PolicyInfo",
    "QuadtreeBeam",
    "SpectralResidualSaliency",
    "center",
    "check_supported",
    "make_policy",
    "oracle_candidates",
    "parse_spec",
    "raster",
    "search_fixed_sequence",
]
