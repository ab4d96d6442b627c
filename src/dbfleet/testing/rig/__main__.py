"""Run the rig's command line."""

import sys

from dbfleet.testing.rig.cli import main

sys.exit(main())
