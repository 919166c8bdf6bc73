"""The hook: authenticated calls to the API."""
