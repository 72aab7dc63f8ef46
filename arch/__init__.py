"""A spec becomes a model (backbone, memories, cost model), and the model is executed (schedules)."""
