"""A ceiling of reconstruction: it is told where the prediction is wrong, but not how a glimpse will change it."""

from torch import Tensor

from canvit_gym.policies.greedy_windows import GreedyWindows, windows_of
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen, with_truth
from canvit_gym.policies.sequences import Scales
from canvit_gym.policies.spec import Context
from canvit_gym.policies.windows import sums_flops
from canvit_gym.tasks.reconstruction import cell_cosines


class ErrorLocator(GreedyWindows):
    """The full scene, then the window that adds most where the predicted features are wrong.

    The amount is 1 minus the cosine of a cell's predicted and true features: see GreedyWindows.
    """

    info = PolicyInfo(
        name="error_locator",
        paper_name="error locator (told where the prediction is wrong)",
        description="The full scene, then the window that adds most resolution where predicted features are wrong (1 "
        "minus their cosine with the true ones, times octaves of resolution added): is told which cells are wrong, not "
        "how they will be read.",
        deterministic=True,
        uses_labels=True,
        tasks=("reconstruction",),
    )

    def amounts(self, seen: Seen) -> Tensor:
        return 1 - cell_cosines(seen.logits, with_truth(seen).truth)

    def flops_per_decision(self, seen: Seen) -> int:
        """The error is given."""
        return 2 * sums_flops(num_windows=len(self.candidates), size=seen.canvas_grid)


def build_error_locator(context: Context, *, scale: Scales | None = None, centers: int | None = None) -> ErrorLocator:
    """By default over the scales and centers of the environment's grid actions."""
    return ErrorLocator(**windows_of(context, scale=scale, centers=centers))
