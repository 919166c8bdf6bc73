"""These tests exist only where the ``datasets`` package is."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("datasets") else ["test_imagefolder.py"]
