"""One trial: its data, training, evaluation, checkpoints, and what becomes of its model."""
