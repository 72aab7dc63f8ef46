"""What the trials say: ranking, replicates, statistics, ablations."""
