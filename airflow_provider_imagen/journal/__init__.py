"""The write-ahead log of paid requests: what to write, when it is durable, and where it is kept."""
