"""What the API charged, and whether each charge produced an image."""
