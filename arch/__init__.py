"""A spec becomes a model (backbone, memories, cost), and the model is executed (schedules)."""
