"""A vision model on loopback, which speaks OpenAI's chat completions and judges by rules of the test."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Question:
    """What the model was shown: the text, and the image as it was before base64."""

    text: str
    media_type: str
    image: bytes


class VisionModel(ThreadingHTTPServer):
    """
    The server, on a free port of 127.0.0.1.

    :param judge: returns what is wrong with an image, or None
    """

    def __init__(self, judge: Callable[[Question], str | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge = judge
        self.questions: list[Question] = []
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> VisionModel:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: VisionModel

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        question = _question(body)
        self.server.questions.append(question)
        self.server.keys.add(self.headers["Authorization"])
        problem = self.server.judge(question)
        answer = {"ok": problem is None, "problem": problem or ""}
        function = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(answer)}
        calls = [{"id": "call_1", "type": "function", "function": function}]
        choice = {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": None, "tool_calls": calls},
        }
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        response = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        content = json.dumps({**response, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _question(body: dict[str, Any]) -> Question:
    (user,) = [message for message in body["messages"] if message["role"] == "user"]
    parts = {part["type"]: part for part in user["content"]}
    head, data = parts["image_url"]["image_url"]["url"].split(",", 1)
    media_type = head.removeprefix("data:").removesuffix(";base64")
    return Question(parts["text"]["text"], media_type, base64.b64decode(data, validate=True))
