"""Which trial comes next: samplers, pruners, racing, warm starts, Optuna's side of the driver."""
