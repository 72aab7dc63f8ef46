"""What is kept, and where: the study's folder, Optuna's database, MLflow, artifacts."""
