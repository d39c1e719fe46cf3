"""List the tools, or run one: python -m lesion_d2.tools NAME is lesion-d2 NAME."""

import sys

from lesion_d2_cli import main

if __name__ == "__main__":
    sys.exit(main())
