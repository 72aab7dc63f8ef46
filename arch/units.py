"""Numbers with units as people write them: `64KiB`, `3.2B`, `5%`, `12h`.

k, M, G (or B, billion), T are powers of 1,000; Ki, Mi, Gi, Ti are powers of 1,024. A trailing `B`
after one of the prefixes k, M, G, T, Ki, Mi, Gi, Ti means bytes and changes nothing.
"""

from __future__ import annotations

import re

_NUMBER = r"([-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)"
_SCALED = re.compile(_NUMBER + r"\s*(%|(?:[kKMGT]|Ki|Mi|Gi|Ti)B?|B)?")
_TIMED = re.compile(_NUMBER + r"\s*(ms|s|min|m|h|d)")
_FACTORS = {
    "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_number(text: str) -> int | float | None:
    """`64KiB` -> 65536, `3.2B` -> 3200000000, `5%` -> 0.05; None if the text is no such number."""
    match = _SCALED.fullmatch(text.strip())
    if match is None:
        return None
    digits, unit = match[1].replace("_", ""), match[2]
    if unit == "%":
        return _plain(float(digits) / 100, integral=False)
    if unit is None:
        return _plain(float(digits), integral="." not in digits and "e" not in digits.lower())
    factor = _FACTORS[unit if unit == "B" else unit.removesuffix("B")]
    # Rounded to a millionth, because 3.2 * 10**9 must be 3200000000 and not a neighbour of it.
    return _plain(round(float(digits) * factor, 6), integral=True)


def parse_duration(text: str) -> float | None:
    """`12h` -> 43200.0 seconds; None if the text is no duration."""
    match = _TIMED.fullmatch(text.strip())
    return None if match is None else float(match[1].replace("_", "")) * _SECONDS[match[2]]


def _plain(value: float, *, integral: bool) -> int | float:
    return int(value) if integral and value.is_integer() else value
