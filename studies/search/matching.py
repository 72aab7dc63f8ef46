"""What a study records of sizes that were solved for (`search_spaces.sizing`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError
from memarch.search_spaces.sizing import UnreachableError
from memarch.studies.driver.failures import failed
from memarch.studies.records.store import Json

if TYPE_CHECKING:
    from memarch.search_spaces.study_file import Resolved


def solved_values(resolved: Resolved) -> Json:
    """The values that `match` set, by the names of their ranges: columns beside the parameters."""
    sized = resolved.sized
    return dict(sized.values) if sized is not None and sized.kind == "match" else {}


def unfit(error: SpecError) -> Json:
    """The result of a point that makes no trial: out of reach of its size, or wrong."""
    result = failed(str(error))
    return result | {"state": "infeasible"} if isinstance(error, UnreachableError) else result


def match_metrics(spec: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, float]:
    """How near a trial came to the size that it was to have, by what was measured of its model."""
    found = {}
    for kind in ("match", "scale"):
        wanted = spec.get(kind)
        value = metrics.get(wanted["cost"]) if wanted else None
        if wanted and value is not None:
            found["match/level"] = float(wanted["level"])
            found["match/residual"] = (value - wanted["level"]) / wanted["level"]
            found[f"match/{wanted['cost']}"] = value
    return found
