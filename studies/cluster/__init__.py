"""Where trials run: Ray's workers, their mailbox and pool, and the nodes that they run on."""
