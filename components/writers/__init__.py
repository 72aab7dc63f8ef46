"""Writers: pure functions by which a segment changes a memory's state."""
