"""What the trials so far come to, without looking at all of them for each new one."""

from __future__ import annotations

from memarch.studies.records.store import Json
from memarch.studies.results.leaderboard import is_copy


class Tally:
    """Counts of a study's records; a record may be noted again when it has changed."""

    def __init__(self) -> None:
        self._flops: dict[int, float] = {}
        self.originals = 0
        """Trials that are no copies of others, and were not found infeasible without a run."""
        self.flops = 0.0
        self._spared: set[int] = set()
        self._last_original = self._last = -1

    def note(self, record: Json) -> None:
        """A record is new, or has changed."""
        number, copied = record["number"], is_copy(record)
        flops = 0.0 if copied else record["metrics"].get("train/flops") or 0.0
        if number not in self._flops and not copied:
            self.originals += 1
            self._last_original = max(self._last_original, number)
        if record["state"] == "infeasible" and not record["attempts"] and not copied:
            self.originals -= number not in self._spared
            self._spared.add(number)
        self.flops += flops - self._flops.get(number, 0.0)
        self._last = max(self._last, number)
        self._flops[number] = flops

    @property
    def copies_in_a_row(self) -> int:
        """How many of the latest trials were points known before."""
        return min(len(self._flops), self._last - self._last_original)

    @property
    def spared_in_a_row(self) -> int:
        """How many of the latest trials did not run."""
        number = self._last
        while number in self._spared:
            number -= 1
        return self._last - number
