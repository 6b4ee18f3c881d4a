"""How long a run has taken at each evaluation and each saved state.

Kept in its own file, since the training state depends on no clock.
"""

import json
import time
from pathlib import Path

from agents.run_directory import CLOCK
from canvit_gym.atomic import write_json

Times = dict[str, list[float]]
"""Lists of equal length: num_timesteps, seconds (wall-clock) and processor_seconds (all threads together)."""


class RunClock:
    """Seconds since training began. A warm start counts; imports do not.

    For a resumed run, the time between the last entry and the interruption is not counted: what was learned after the
    last saved state is lost as well.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / CLOCK
        self._began = time.monotonic(), time.process_time()
        self._times: Times = {"num_timesteps": [], "seconds": [], "processor_seconds": []}

    def resume_at(self, num_timesteps: int) -> None:
        """Continue from the times in the directory, up to `num_timesteps` decisions."""
        if (times := read_times(self.path)) is None:
            return
        kept = sum(at <= num_timesteps for at in times["num_timesteps"])
        self._times = {name: values[:kept] for name, values in times.items()}
        if kept:
            wall, processor = self._began
            self._began = wall - self._times["seconds"][-1], processor - self._times["processor_seconds"][-1]

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return time.monotonic() - self._began[0]

    def note(self, num_timesteps: int) -> None:
        """Record the time at which `num_timesteps` decisions have been learned from: now, unless it is known."""
        if num_timesteps in self._times["num_timesteps"]:
            return
        now = (num_timesteps, self.seconds, time.process_time() - self._began[1])
        for values, value in zip(self._times.values(), now, strict=True):
            values.append(round(value, 2))
        write_json(self.path, self._times)


def read_times(path: Path) -> Times | None:
    """Read the times of a run; None if it was begun by a version that did not record them."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
