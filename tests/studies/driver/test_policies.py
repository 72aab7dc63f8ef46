"""Kinds of failures, what their policies give, and how batches are halved."""

from __future__ import annotations

import errno

import pytest

from memarch.components.errors import SpecError
from memarch.studies.driver.failures import kind_of, place_of, reason_of
from memarch.studies.driver.policies import OnFailure, Policies, with_half_batches


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (ValueError("no"), "error"),
        (SpecError("wrong"), "error"),
    ],
)
def test_an_exception_is_of_a_kind(error, kind):
    assert kind_of(error) == kind


def test_a_full_disk_is_known_behind_other_errors():
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert kind_of(error) == "disk_full"


def test_errors_of_one_cause_have_one_place():
    def fail(text: str) -> str:
        try:
            raise ValueError(text)
        except ValueError as error:
            return place_of(error)

    assert fail("a") == fail("b")
    assert fail("a").startswith("ValueError at test_policies.py:")
    assert reason_of(ValueError("two\nlines")) == "ValueError: two lines"


def policies(**given) -> Policies:
    settings = OnFailure.model_validate(given).model_dump(mode="json")
    return Policies({"on_failure": settings})


def test_attempts_are_counted():
    spec = {"train": {"batch_size": 8}}
    some = policies(worker_lost={"times": 2})
    record = {"failures": {"worker_lost": 2}}
    assert some.another_attempt("worker_lost", record, spec) is spec
    record["failures"]["worker_lost"] = 3
    assert some.another_attempt("worker_lost", record, spec) is None
    assert policies(worker_lost="fail").another_attempt("worker_lost", {}, spec) is None


def test_a_word_says_how_a_trial_ends():
    assert policies().ending("not_finite") == "infeasible"
    assert policies(not_finite="fail").ending("not_finite") == "failed"
    assert policies(out_of_memory="infeasible").ending("out_of_memory") == "infeasible"


def test_a_study_stops_after_errors_of_one_place():
    some = policies(error={"stop_after": 2})
    assert some.stops("error", "here") is None
    assert some.stops("error", "there") is None
    assert some.stops("error", "here") == 2
    assert policies().stops("worker_lost", "") is None


def test_half_batches_make_equal_steps():
    spec = {
        "train": {"batch_size": 12, "accumulate": 2},
        "eval": {"kv": {"batch_size": 64}, "long": {"batch_size": 1}},
    }
    half = with_half_batches(spec)
    assert (half["train"]["batch_size"], half["train"]["accumulate"]) == (6, 4)
    assert [e["batch_size"] for e in half["eval"].values()] == [32, 1]
    assert spec["train"]["batch_size"] == 12
    odd = with_half_batches({"train": {"batch_size": 9}})
    assert (odd["train"]["batch_size"], odd["train"]["accumulate"]) == (3, 3)
    assert with_half_batches({"train": {"batch_size": 1}}) is None


def test_stages_are_halved_with_the_run():
    stage = {"set": {"train.batch_size": 4}, "spec": {"train": {"batch_size": 4, "lr": 1}}}
    half = with_half_batches({"train": {"batch_size": 16, "stages": [stage, {"set": {}}]}})
    changed = half["train"]["stages"][0]
    assert changed["set"] == {"train.batch_size": 2}
    assert changed["spec"]["train"] == {"batch_size": 2, "lr": 1, "accumulate": 2}
    assert (
        with_half_batches(
            {"train": {"batch_size": 16, "stages": [{"set": {"train.batch_size": 3}}]}}
        )
        is None
    )


def test_processes_share_what_is_left():
    spec = {"train": {"batch_size": 8}, "resources": {"nodes": 2, "gpus_per_node": 2}}
    assert with_half_batches(spec)["train"]["batch_size"] == 4
    assert with_half_batches(with_half_batches(spec)) is None


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"oom": "fail"}, "oom"),
        ({"error": "retry"}, "error"),
        ({"stalled": {"retry": "halve_batch"}}, "stalled"),
    ],
)
def test_policies_that_are_none_are_refused(given, path):
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=path):
        OnFailure.model_validate(given)
