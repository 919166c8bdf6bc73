"""
Update the screenshots of the documentation from those of the browser check.

    ARTIFACTS=/tmp/screenshots bash tests/browser/set-up.sh .venv/bin/python
    python docs/update_images.py /tmp/screenshots
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

IMAGES = {
    "all-dags": "21-all-dags",
    "comparison": "34-comparison",
    "connection-form": "01-connection-standard-fields",
    "dag-tab": "09-dag-tab",
    "first-dag": "21-first-dag",
    "gallery": "04-run-tab-light",
    "lightbox": "32-lightbox-info",
    "picture": "08-picture",
    "review": "11-review",
    "review-page": "review-page",
    "telephone": "10-telephone-dark",
    "trigger-form": "03-trigger-form",
}
"""The name in ``docs/images`` and that of the screenshot."""

MAX_BYTES = 150_000
MAX_PIXELS = 1360
"""Longer side of an image."""


def main() -> None:
    """Write the images as WebP, at most :data:`MAX_BYTES` each."""
    screenshots = Path(sys.argv[1])
    for name, screenshot in IMAGES.items():
        target = Path(__file__).parent / "images" / f"{name}.webp"
        with Image.open(screenshots / f"{screenshot}.png") as image:
            image.thumbnail((MAX_PIXELS, MAX_PIXELS))
            for quality in range(85, 40, -10):
                image.convert("RGB").save(target, quality=quality, method=6)
                if target.stat().st_size <= MAX_BYTES:
                    break
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
