"""Tasks, training, the study driver (Optuna, Ray, MLflow) and reports."""
