"""The hook that makes authenticated calls to the API."""
