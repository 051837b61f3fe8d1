"""ScalingWindow: keeps a number of processes from going up and down.

More are taken at once; fewer only when fewer were enough all through a window. It is what the Horizontal Pod Autoscaler
of Kubernetes does with ``stabilizationWindowSeconds``: the highest number that was wanted within the window counts
(https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#stabilization-window). So after each step up
none goes down for a window.
"""

from __future__ import annotations

from collections import deque

DOWN_AFTER_S = 60.0


class ScalingWindow:
    """The highest number that was wanted within the last seconds.

    Args:
        down_after_s: Length of the window; 0: what is wanted now counts.
    """

    def __init__(self, down_after_s: float = DOWN_AFTER_S) -> None:
        self._down_after_s = down_after_s
        self._wanted: deque[tuple[float, int]] = deque()

    def steady(self, wanted: int, now_s: float, *, running: int) -> int:
        """Take in what is wanted now, and return the number that counts.

        Args:
            wanted: Processes wanted.
            now_s: Seconds, from any beginning.
            running: Processes that run. At the first look they count as wanted: who has just begun to look knows
                nothing of what was before.
        """
        if not self._wanted and self._down_after_s and running > wanted:
            self._wanted.append((now_s, running))
        # What is no more than the latest can never again be the highest.
        while self._wanted and self._wanted[-1][1] <= wanted:
            self._wanted.pop()
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] <= now_s - self._down_after_s:
            if len(self._wanted) == 1:
                break
            self._wanted.popleft()
        return self._wanted[0][1]
