"""A trained trial as a Hugging Face folder: weights, config, tokenizer, model card.

config.json, model.safetensors, generation_config.json    what `save_pretrained` wrote
modeling_memarch.py       lets AutoModelForCausalLM find the classes (trust_remote_code=True);
                          it imports memarch, which has to be installed
tokenizer files           where the trial had a tokenizer of transformers
plugins/                  the user's own files that the memory is in
memarch.json              the record: spec, metrics, versions, commit, data hash
README.md                 the model card, made from the record
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from memarch.arch.spec import mechanism
from memarch.components.errors import SpecError
from memarch.studies.records.store import TrialFolder, write_json, write_text
from memarch.studies.results.leaderboard import cost, number

Json = dict[str, Any]

CLASSES = '''"""The model's classes are memarch's own: `pip install memarch`."""

from memarch.arch.model import MemarchConfig, MemarchModel

__all__ = ["MemarchConfig", "MemarchModel"]
'''

RECORDED = ("versions", "commit", "data", "threads", "device", "cpu", "schedule", "plugins")


def export(trial: TrialFolder, name: str, folder: Path) -> list[str]:
    """Write the folder, which must be new or empty; the names of its files."""
    model, record, spec = trial.path / "model", trial.record, trial.spec
    if spec is None or not (model / "config.json").is_file():
        raise SpecError(f"trial {name} has no saved model; its state is {record.get('state')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder} is there already, and not empty: give a new folder")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    _name_classes(folder)
    plugins = _copy_plugins(spec.get("plugins") or [], folder)
    tokenized = _save_tokenizer(spec, folder)
    result = trial.result or {}
    made_with = {key: result[key] for key in RECORDED if key in result}
    kept = {key: record[key] for key in ("variant", "params", "metrics", "seed")}
    write_json(folder / "memarch.json", {"trial": name, "spec": spec} | kept | made_with)
    card = _card(name, folder.name, record, spec, made_with, plugins, tokenized=tokenized)
    write_text(folder / "README.md", card)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _name_classes(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": "modeling_memarch.MemarchConfig",
        "AutoModelForCausalLM": "modeling_memarch.MemarchModel",
    }
    write_text(path, json.dumps(config, indent=2) + "\n")
    write_text(folder / "modeling_memarch.py", CLASSES)


def _copy_plugins(paths: Iterable[str], folder: Path) -> list[str]:
    names = []
    for path in map(Path, paths):
        (folder / "plugins").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "plugins" / path.name)
        names.append(f"plugins/{path.name}")
    return names


def _save_tokenizer(spec: Mapping[str, Any], folder: Path) -> bool:
    """The task's tokenizer, or the pretrained backbone's; many tasks have an alphabet instead."""
    from transformers import AutoTokenizer

    from memarch.studies.training.points import backbone_tokenizer

    given = spec["task"].get("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(given) if given else backbone_tokenizer(spec["model"])
    if tokenizer is None:
        return False
    tokenizer.save_pretrained(folder)
    return True


def _card(
    name: str,
    title: str,
    record: Mapping[str, Any],
    spec: Mapping[str, Any],
    made_with: Mapping[str, Any],
    plugins: list[str],
    *,
    tokenized: bool,
) -> str:
    metrics = record["metrics"]
    scores = {k: v for k, v in metrics.items() if k.startswith(("eval/", "test/"))}
    costs = {k: v for k, v in metrics.items() if k.startswith("cost/")}
    parts = [
        _front_matter(spec),
        f"# {title}",
        f"A memory-augmented transformer: trial {name}, {_what(record, spec)}.",
        _table("Scores", "metric", {k: _score(v) for k, v in scores.items()}),
        _table("Costs", "what", {k: cost({"metrics": costs}, k) for k in costs}),
        "## How to use\n\n" + _usage(spec, plugins, tokenized=tokenized),
        "## Settings\n\n```yaml\n" + _yaml(_sections(spec)) + "```",
        "## How it was made\n\n" + _made(name, record, made_with),
        "## Licence\n\n" + _licence(spec),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(spec: Mapping[str, Any]) -> str:
    head: Json = {"library_name": "memarch", "pipeline_tag": "text-generation"}
    head["tags"] = ["memarch", *sorted(set(_memories(spec)))]
    pretrained = spec["model"]["backbone"].get("pretrained")
    if pretrained and not Path(pretrained).is_absolute():
        head["base_model"] = pretrained
    return "---\n" + _yaml(head) + "---"


def _memories(spec: Mapping[str, Any]) -> list[str]:
    return mechanism(spec["model"]).split("+") if spec["model"]["memory"] else []


def _what(record: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    memories = ", ".join(f"`{name}`" for name in _memories(spec)) or "no memory"
    backbone = spec["model"]["backbone"]
    base = backbone.get("pretrained") or f"a {backbone.get('type')} trained from scratch"
    drawn = ", ".join(f"{key} {number(value)}" for key, value in record["params"].items())
    variant = f"variant {record['variant']}, " if record["variant"] else ""
    settings = f" ({drawn})" if drawn else ""
    return f"{variant}{memories} on {base}, on `{spec['task']['type']}`{settings}"


def _usage(spec: Mapping[str, Any], plugins: list[str], *, tokenized: bool) -> str:
    load = f'model = memarch.load("."{f", plugins={plugins}" if plugins else ""})'
    auto = (
        "from transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)\n'
    )
    lines = [
        "```python",
        "import memarch  # pip install memarch",
        "",
        load,
        "state = model.write(context_ids)                     # read a context once ...",
        "answer = model.generate(query_ids, memory=state)     # ... answer many queries from it",
        "```",
    ]
    if not plugins:
        lines += [
            "",
            "or, with memarch installed beside transformers:",
            "",
            f"```python\n{auto}```",
        ]
    if not tokenized:
        lines += ["", "Token ids are the task's own; it has no tokenizer of transformers."]
    length = spec["model"]["segment_length"]
    lines += ["", f"Inputs are cut into segments of {length} tokens."]
    return "\n".join(lines)


def _made(name: str, record: Mapping[str, Any], made_with: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in (made_with.get("versions") or {}).items())
    facts = {
        "trial": name,
        "seed": record["seed"],
        "versions": versions,
        "commit of memarch": made_with.get("commit") or "installed from a wheel",
        "data hash": made_with.get("data", "unknown"),
        "device": made_with.get("device", "unknown"),
        "threads": made_with.get("threads", "unknown"),
    }
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    return "\n".join([*lines, "", "`memarch.json` has the whole record."])


def _licence(spec: Mapping[str, Any]) -> str:
    said = "The code that runs it, memarch, is under the Apache License 2.0."
    base = spec["model"]["backbone"].get("pretrained")
    if base:
        said += f" The weights derive from {base}, whose licence holds for them."
    return said + " The licence of the training data may bind the weights too: choose yours by it."


def _table(title: str, heading: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| `{name}` | {value} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", f"| {heading} | value |", "| --- | ---: |", *lines])


def _score(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def _sections(spec: Mapping[str, Any]) -> Json:
    plain = {name: spec[name] for name in ("task", "model", "train")}
    found: Json = json.loads(json.dumps(plain))
    return found


def _yaml(value: Any) -> str:
    stream = StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.representer.sort_base_mapping_type_on_output = False
    writer.dump(value, stream)
    return str(stream.getvalue())
