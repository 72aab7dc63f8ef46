"""YAML studies that ship with memarch, one per question, and the reader that makes them trials."""
