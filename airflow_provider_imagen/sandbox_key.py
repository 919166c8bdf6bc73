"""The sandbox's default API key, in a module of its own because tasks compare theirs with it without a sandbox."""

from __future__ import annotations

SANDBOX_API_KEY = "5a9db0c5" + "0" * 24
"""The key a sandbox accepts by default; it is valid nowhere else."""
