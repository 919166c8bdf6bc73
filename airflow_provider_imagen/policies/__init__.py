"""What a failed try means for the next one."""
