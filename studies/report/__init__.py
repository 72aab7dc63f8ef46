"""What people see: the report's page and its pictures, and the study's run in MLflow."""
