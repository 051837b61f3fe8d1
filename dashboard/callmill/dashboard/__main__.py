"""``python -m callmill.dashboard``."""

from callmill.dashboard.command import main

main()
