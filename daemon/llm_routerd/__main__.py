"""`python -m llm_routerd`: the same as the command `llm-routerd`."""

import sys

from llm_routerd.cli.main import main

sys.exit(main())
