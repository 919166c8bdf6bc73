"""Operators that generate images from templated prompts."""
