"""The write-ahead log of paid requests: record types, group commit, and stores."""
