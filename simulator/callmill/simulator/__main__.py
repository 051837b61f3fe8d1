"""``python -m callmill.simulator``."""

from callmill.simulator.command import simulate

simulate()
