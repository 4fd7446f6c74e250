"""`python -m martes` is the command `martes`."""

from martes.cli import main

main()
