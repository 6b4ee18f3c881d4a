"""The options of speed measurements."""

from dataclasses import dataclass

from canvit_gym.backbone.load import resolve_device
from canvit_gym.checks import integer, optional
from experiments.throughput.contestants import Job


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    num_envs: int = 64
    """Scenes per batch."""
    budget: int = 5
    """Glimpses per scene, the first one included."""
    num_scenes: int = 512
    """Of the validation split; prepared before the clock starts."""
    repeats: int = 9
    """Times that everything is measured, in turns."""
    device: str = "auto"
    threads: int | None = None
    """PyTorch's threads. None: PyTorch's default."""

    def check(self) -> None:
        """Check the options before anything is measured.

        Raises:
            ValueError: a number that is too small, or a device that is not there.
        """
        for name, least in (("num_envs", 1), ("budget", 2), ("num_scenes", 1), ("repeats", 1)):
            integer(least)(name, getattr(self, name))
        optional(integer(1))("threads", self.threads)
        resolve_device(self.device)

    def job(self, contestant: str, *, rounds: int) -> Job:
        """The job of a contestant in this setting."""
        return Job(
            contestant=contestant,
            num_envs=self.num_envs,
            budget=self.budget,
            num_scenes=self.num_scenes,
            rounds=rounds,
            device=self.device,
            threads=self.threads,
        )
