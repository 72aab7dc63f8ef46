"""What a study file's sections may say, checked."""
