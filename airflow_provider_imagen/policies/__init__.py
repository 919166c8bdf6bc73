"""Retry policies."""
