"""These tests exist only where exiftool is (Debian: ``libimage-exiftool-perl``)."""

from shutil import which

collect_ignore = [] if which("exiftool") else ["test_exiftool.py"]
