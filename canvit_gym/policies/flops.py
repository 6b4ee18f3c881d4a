"""FLOPs of what policies compute, per scene: canvit_pytorch.flops on the parts that a window shows."""

from canvit_gym.policies.seen import Seen


def probe_flops(seen: Seen) -> int:
    """One reading of a state by the task's probe."""
    return seen.task.flops_per_reading


def trial_flops(seen: Seen) -> int:
    """One glimpse tried out and read: what an oracle pays for every candidate."""
    return seen.backbone.glimpse_flops + probe_flops(seen)
