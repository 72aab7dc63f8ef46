"""Tasks: data, and how an answer is scored; one file each, registered by name."""
