"""`python -m martes` is the command `martes`."""

import sys

from martes.cli import main

sys.exit(main())
