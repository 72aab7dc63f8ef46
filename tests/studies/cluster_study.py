"""A driver in a process of its own on a cluster: python cluster_study.py ADDRESS FILE STORAGE.

Further arguments are overrides; a trial function may come by `TRIAL=path.py:name`, and
Optuna's database by `DATABASE=postgresql://…`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from memarch.studies.driver.sessions import run_study

TRIALS = Path(__file__).with_name("driver_trials.py")


def show(event: object) -> None:
    print(f"{type(event).__name__} {getattr(event, 'message', '')}", flush=True)


if __name__ == "__main__":
    result = run_study(
        sys.argv[2],
        storage=sys.argv[3],
        address=sys.argv[1],
        database=os.environ.get("DATABASE"),
        overrides=sys.argv[4:],
        on_event=show,
        trial_function=os.environ.get("TRIAL", f"{TRIALS}:run"),
        test_function=f"{TRIALS}:test",
    )
    print("state", result.state)
