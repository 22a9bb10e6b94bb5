"""``python -m gruclip``: the command line without an installed script."""

import sys

from gruclip.cli import main

sys.exit(main())
