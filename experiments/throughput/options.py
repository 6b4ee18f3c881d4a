"""The options of speed measurements."""

from dataclasses import dataclass

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
