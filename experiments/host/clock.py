"""Wall seconds of each phase of a run."""

import time


class Clock:
    """Wall seconds of each phase of a run, over all the processes that worked on it."""

    def __init__(self, phases: tuple[str, ...]):
        """Starts at zero for each phase."""
        self.seconds: dict[str, float] = dict.fromkeys(phases, 0.0)
        self._last = time.monotonic()

    def lap(self, name: str | None = None) -> float:
        """Books the seconds since the last lap to a phase, or to none, and returns them."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        if name is not None:
            self.seconds[name] += passed
        return passed

    def add(self, seconds: dict[str, float]) -> None:
        """Adds the seconds of earlier processes."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
