"""A wheel of the memarch that runs here, for the nodes of a cluster that have none.

It is packed from the installed files, a checkout's or a distribution's, so that it needs neither a
build tool nor a network. Ray installs it with pip and keeps it by its name, so it names no
dependencies (a node would download torch, in its newest version), and its build number is its
content's.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from memarch.studies.cluster.node_probe import memarch_files

ABOUT = ("METADATA", "entry_points.txt", "top_level.txt")
DEPENDENCIES = ("Requires-Dist:", "Provides-Extra:")


def build_wheel(folder: Path) -> Path:
    """Write `memarch-VERSION-BUILD-py3-none-any.whl` into the folder."""
    here = distribution("memarch")
    info = f"memarch-{here.version}.dist-info"
    files = {name: path.read_bytes() for name, path in memarch_files()}
    for name in ABOUT:
        text = here.read_text(name)
        if text is not None:
            lines = [line for line in text.splitlines() if not line.startswith(DEPENDENCIES)]
            files[f"{info}/{name}"] = "\n".join([*lines, ""]).encode()
    wheel = "Wheel-Version: 1.0\nGenerator: memarch\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/WHEEL"] = wheel.encode()
    record = [f"{name},sha256={_hash(text)},{len(text)}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    build = hashlib.sha256(files[f"{info}/RECORD"]).hexdigest()[:12]
    path = folder / f"memarch-{here.version}-0{build}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])  # equal files, equal wheel
    return path


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
