"""FLOPs of what policies compute, per scene: canvit_pytorch.flops on the parts that a window shows."""

from canvit_pytorch.flops import linear_flops, segmentation_probe_flops

from canvit_gym.policies.seen import Seen


def probe_flops(seen: Seen) -> int:
    """One reading of a state by the task's probe."""
    backbone, num_classes = seen.backbone, len(seen.task.classes)
    if seen.task.is_dense:
        return segmentation_probe_flops(
            grid_size=backbone.canvas_grid, embed_dim=backbone.canvit.canvas_dim, num_classes=num_classes
        )
    return linear_flops(num_tokens=1, in_dim=backbone.canvit.backbone_dim, out_dim=num_classes)


def trial_flops(seen: Seen) -> int:
    """One glimpse tried out and read: what an oracle pays for every candidate."""
    return seen.backbone.glimpse_flops + probe_flops(seen)
