"""Hand-coded policies behind one protocol."""

from canvit_gym.policies.oracle import GreedyOracle, oracle_candidates
from canvit_gym.policies.paper import PaperPolicy
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo

__all__ = ["GlimpsePolicy", "GreedyOracle", "PaperPolicy", "PolicyInfo", "oracle_candidates"]
