"""``python -m callmill.cli``."""

from callmill.cli.program import main

main()
