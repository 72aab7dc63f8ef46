"""What a report says in words: the answer, and the command that runs the study again."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path

from memarch.studies import leaderboard as board
from memarch.studies.report_records import Records, label, score_of


def answer(records: Records) -> str:
    """The result in a sentence or two."""
    rows = [trial for trial in records.ranked if trial["state"] == "complete"]
    if not rows:
        return "<p class=answer>No trial has finished yet.</p>"
    best = board.best_memory(rows)
    value = score_of(records, best)
    shown = board.figure(best, records.metric, digits=3)
    state = board.cost(best, "cost/state_bytes")
    words = [f"<b>{escape(label(best))}</b> is best: {escape(records.metric)} <b>{shown}</b>"]
    words[0] += f" with {state} of state."
    if records.floors:
        sign = 1 if records.maximize else -1
        name, floor = max(records.floors.items(), key=lambda item: item[1] * sign)
        verb = "beats" if sign * value > sign * floor else "does <b>not</b> beat"
        words.append(f"It {verb} the floor of {floor:.3f} ({escape(name.replace('_', ' '))}).")
    for trial in rows:
        if board.is_baseline(trial):
            what = board.BASELINES[trial["variant"]]
            score = board.figure(trial, records.metric, digits=3)
            words.append(f"{escape(trial['variant'])} ({what}) has {score}.")
    return f"<p class=answer>{' '.join(dict.fromkeys(words))}</p>"


def command(records: Records) -> str:
    """What runs the study again."""
    info = records.info
    file = Path(info.get("file") or "study.yaml")
    words = ["memarch", "study", "run", file.name]
    if records.document["name"] != (records.settings.get("name") or file.stem):
        words += ["--as", records.document["name"]]
    words += ["--set", *info["overrides"]] if info.get("overrides") else []
    return shlex.join(words)
