"""
The floor: the least that anyone could do by hand, to compare with.

A pool of threads that posts with ``requests``, downloads, decodes once with Pillow, and writes the file. No journal, no
checks, no retries, no provenance, no manifest: a killed worker pays for everything again.
"""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path


def paint(prompts: list[str], *, base_url: str, folder: str, concurrency: int, inline: bool = False) -> int:
    """Make one picture per prompt, and give the number of files."""
    import requests
    from PIL import Image

    Path(folder).mkdir(parents=True, exist_ok=True)
    local = threading.local()

    def one(number: int, prompt: str) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        session = local.session
        body = {"model": "imagen-3.0-generate-002", "prompt": prompt, "convert_base64_to_url": not inline}
        answer = session.post(f"{base_url}/v1/images/generations", json=body, timeout=300)
        answer.raise_for_status()
        (item,) = answer.json()["data"]
        data = base64.b64decode(item["b64_json"]) if inline else session.get(item["url"], timeout=300).content
        with Image.open(BytesIO(data)) as picture:
            picture.load()
        Path(folder, f"{number:05}.png").write_bytes(data)

    with ThreadPoolExecutor(concurrency) as pool:
        for done in [pool.submit(one, number, prompt) for number, prompt in enumerate(prompts)]:
            done.result()
    return len(list(Path(folder).glob("*.png")))
