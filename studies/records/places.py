"""Where a study keeps things: Optuna's record, MLflow's runs, and what trials leave behind.

Chosen when a study begins and written in its `study.json`, so that `resume` need not be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memarch.studies.records import artifacts as artifact
from memarch.studies.records import database as record
from memarch.studies.records.store import Json
from memarch.studies.records.tracking import check_tracking_uri


@dataclass(frozen=True)
class Places:
    """URLs; None is the storage folder."""

    database: str | None = None
    artifacts: str | None = None

    @classmethod
    def choose(
        cls,
        storage: Path,
        database: str | None,
        artifacts: str | None,
        info: Mapping[str, Any] | None = None,
    ) -> Places:
        """What is asked for, else what the study began with (its `info`), else the environment's.

        Each is tried: what does not answer is an error before anything is made.
        """
        known = info or {}
        began = info is not None
        places = cls(
            record.chosen_database(database, known.get("database"), began=began),
            artifact.chosen_artifacts(artifacts, known.get("artifacts"), began=began),
        )
        check_tracking_uri(storage)
        record.check_database(places.database)
        artifact.check_artifacts(places.artifacts)
        return places

    def written(self) -> Json:
        """For `study.json`: passwords are not written down."""
        urls = {"database": self.database, "artifacts": self.artifacts}
        return {name: url and record.without_password(url) for name, url in urls.items()}

    def notes(self) -> list[str]:
        """What people should know about it."""
        if self.written() == {"database": self.database, "artifacts": self.artifacts}:
            return []
        note = (
            "passwords in URLs are not written down: `resume` needs them in the environment "
            f"(${record.VARIABLE}, $PGPASSWORD) or ~/.pgpass"
        )
        return [note]
