"""Study files for the tests of the driver, and the calls that run them with `driver_trials.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memarch.studies.driver import events
from memarch.studies.driver.events import StudyResult
from memarch.studies.driver.sessions import resume_study, run_study

TRIALS = Path(__file__).with_name("driver_trials.py")

TEMPLATE = """
study:
  name: {name}
  question: '{question}'
  design: {design}
  objective: {objective}
  budget: {budget}
  seeds: {seeds}
  sampler: {sampler}
  pruner: {pruner}
  constraints: {constraints}
  finalists: {finalists}
  trial_time_limit: {trial_time_limit}
  stall_limit: {stall_limit}
  on_failure: {on_failure}
vars: {{segment_length: {{choice: [16, 32, 64]}}, lr: {lr}}}
variants: {variants}
plugins: {plugins}
task: {{type: kv_retrieval, pairs: 4, format: compact}}
model:
  backbone: {{type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4}}
  segment_length: $segment_length
train: {{budget: {{steps: 100}}, lr: $lr}}
eval: {{kv: {{task: same}}}}
resources: {{cpus: {cpus}, memory: {memory}}}
"""

VARIANTS = {
    "none": {"model.memory": {}, "model.segment_length": 16},
    "rmt": {"model.memory.main": {"type": "rmt", "num_tokens": 2}},
    "deltanet": {"model.memory.main": {"type": "deltanet", "heads": 4}},
}

DEFAULTS: dict[str, Any] = {
    "name": "study",
    "question": {},
    "design": "search",
    "objective": "{eval/kv/exact_match: maximize}",
    "budget": "{trials: 6}",
    "seeds": "{model: 1, search: 3}",
    "sampler": "random",
    "pruner": "none",
    "constraints": "{}",
    "finalists": 0,
    "trial_time_limit": "null",
    "stall_limit": "null",
    "on_failure": "{}",
    "memory": "null",
    "lr": "{float: [1e-4, 1e-1], log: true}",
    "cpus": 2,
    "variants": VARIANTS,
    "plugins": "[]",
}


def write_study(folder: Path, **settings: Any) -> Path:
    values = DEFAULTS | settings
    for name in ("question", "variants"):
        values[name] = json.dumps(values[name])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{values['name']}.yaml"
    path.write_text(TEMPLATE.format(**values))
    return path


def run(file: Path, storage: Path, **arguments: Any) -> StudyResult:
    return run_study(
        file,
        storage=storage,
        trial_function=f"{TRIALS}:run",
        test_function=f"{TRIALS}:test",
        cost_function=f"{TRIALS}:cost",
        **arguments,
    )


class Log(list[events.Event]):
    def __call__(self, event: events.Event) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]

    def notices(self) -> str:
        return "\n".join(event.message for event in self.of(events.Notice))


if __name__ == "__main__":
    # A driver in a process of its own: driver_study.py FILE STORAGE [ADDRESS], or resume NAME …
    import sys

    def show(event: object) -> None:
        text = getattr(event, "message", getattr(event, "number", ""))
        print(f"{type(event).__name__} {text}", flush=True)

    given = sys.argv[2:] if sys.argv[1] == "resume" else sys.argv[1:]
    options: dict[str, Any] = {"address": given[2] if len(given) > 2 else None, "on_event": show}
    if sys.argv[1] == "resume":
        result = resume_study(given[0], storage=given[1], **options)
    else:
        result = run(Path(given[0]), Path(given[1]), **options)
    print("state", result.state)
