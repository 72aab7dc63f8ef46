"""What the section `resources` comes to, process by process."""

from __future__ import annotations

import pytest

from memarch.studies.cluster.resources import Size

SPANS = {"nodes": 2, "gpus_per_node": 4, "cpus_per_node": 16, "memory": 800, "custom": {"a": 4}}


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, Size()),
        ({"cpus": 2, "gpus": 0.5}, Size(2, 0.5)),
        ({"memory": 9, "custom": {"a": 1}}, Size(1, 0, 9, (("a", 1),))),
        ({"cpus": 1, "nodes": 2, "cpus_per_node": 3}, Size(3, processes=2)),
        ({"nodes": 2, "gpus_per_node": 4}, Size(1, 1, processes=8)),
        (SPANS, Size(4, 1, 200, (("a", 1.0),), 8)),
    ],
)
def test_training(given, size):
    assert Size.of({"resources": given}) == size


def test_all_processes_together():
    needs = Size.of({"resources": SPANS}).needs()
    assert needs == {"CPU": 32, "GPU": 8, "memory": 1600, "a": 8}


def test_evaluation_has_one_process():
    assert Size.of_evaluation({"resources": {"cpus": 3}}) == Size(3)
    assert Size.of_evaluation({"resources": SPANS}) == Size(4, 1, 200, (("a", 1.0),))
    assert Size.of_evaluation({"resources": SPANS | {"eval": {"gpus": 2}}}) == Size(1, 2)
