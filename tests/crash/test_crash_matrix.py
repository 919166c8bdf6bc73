from __future__ import annotations
import pytest

PROMPTS = ["one", "two", "three"]

def test_x(paint):
    p = paint(prompt=PROMPTS)
    p.finish()
    p.assert_whole(PROMPTS)

def test_y(paint):
    p = paint(prompt=PROMPTS)
    p.die("before", "fact intent", 1)
    p.die("after", "fact paid", 2)
    p.finish()
    p.assert_whole(PROMPTS)
