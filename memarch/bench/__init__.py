"""Speed, measured: candidates for the same work, side by side in one run, as ratios.

It needs what a model needs and no more, so it also runs where only that is installed:
`python -m memarch.bench` is `memarch bench` without the rest of the command line.
"""
