"""How long a run has taken at each of its evaluations; in a file apart from the state, which depends on no clock."""

import json
import time
from pathlib import Path

from agents.run_directory import CLOCK
from canvit_gym.atomic import write_json

Times = dict[str, list[float]]
"""num_timesteps, seconds (of the clock on the wall) and processor_seconds, all threads together; one entry each."""


class RunClock:
    """Seconds since training began, what came before it (imports) left out, a warm start included.

    Of a resumed run the time between its last entry and its interruption is lost, together with what was learned in it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / CLOCK
        self._began = time.monotonic(), time.process_time()
        self._times: Times = {"num_timesteps": [], "seconds": [], "processor_seconds": []}

    def resume_at(self, num_timesteps: int) -> None:
        """Go on from the times in the directory, up to so many decisions."""
        if (times := read_times(self.path)) is None:
            return
        kept = sum(at <= num_timesteps for at in times["num_timesteps"])
        self._times = {name: values[:kept] for name, values in times.items()}
        if kept:
            wall, processor = self._began
            self._began = wall - self._times["seconds"][-1], processor - self._times["processor_seconds"][-1]

    def note(self, num_timesteps: int) -> None:
        """That so many decisions are learned from, now."""
        wall, processor = self._began
        now = (num_timesteps, time.monotonic() - wall, time.process_time() - processor)
        for values, value in zip(self._times.values(), now, strict=True):
            values.append(round(value, 2))
        write_json(self.path, self._times)


def read_times(path: Path) -> Times | None:
    """None where a run has none: it was begun by an earlier version."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
