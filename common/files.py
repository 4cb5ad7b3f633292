"""Where the program's own files are."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
