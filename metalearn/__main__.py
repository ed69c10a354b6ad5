"""`python -m metalearn` equals `metalearn`."""

from __future__ import annotations

import sys
from pathlib import Path

# `-m` puts the working folder first on the path, where a stray file could shadow a library; only a checkout
# needs it there.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parent.parent:
    del sys.path[0]

from metalearn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
