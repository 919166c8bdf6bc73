"""
The baseline: the least one could do by hand, for comparison.

A thread pool that posts with ``requests``, downloads, and writes the file. No journal, no checks, no retries, no
provenance, no manifest: it may store half an image, and after a kill it pays for everything again.
"""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def paint(prompts: list[str], *, base_url: str, folder: str, concurrency: int, inline: bool = False) -> int:
    """Generate one image per prompt, and return the number of files."""
    import requests

    Path(folder).mkdir(parents=True, exist_ok=True)
    local = threading.local()

    def one(number: int, prompt: str) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        session = local.session
        body = {"model": "imagen-3.0-generate-002", "prompt": prompt, "convert_base64_to_url": not inline}
        response = session.post(f"{base_url}/v1/images/generations", json=body, timeout=300)
        response.raise_for_status()
        (item,) = response.json()["data"]
        data = base64.b64decode(item["b64_json"]) if inline else session.get(item["url"], timeout=300).content
        Path(folder, f"{number:05}.png").write_bytes(data)

    with ThreadPoolExecutor(concurrency) as pool:
        for done in [pool.submit(one, number, prompt) for number, prompt in enumerate(prompts)]:
            done.result()
    return len(list(Path(folder).glob("*.png")))
