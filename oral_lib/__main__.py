"""python -m oral_lib: see `oral_lib.workflow.cli`."""

import sys

from oral_lib.workflow.cli import main

sys.exit(main())
