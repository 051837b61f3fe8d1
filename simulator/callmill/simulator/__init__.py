"""An API server with strict limits and faults on purpose, for dry runs, tests and benchmarks."""

from callmill.simulator.options import EnforcerKind, HeaderStyle, SimulatorOptions
from callmill.simulator.process import SimulatorProcess
from callmill.simulator.server import run, serve

__all__ = ["EnforcerKind", "HeaderStyle", "SimulatorOptions", "SimulatorProcess", "run", "serve"]
