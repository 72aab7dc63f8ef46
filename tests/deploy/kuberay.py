"""KubeRay's own part of RayCluster and RayJob (v1) as a JSON schema; pods are Kubernetes' part.

Written down from the fields of KubeRay's v1 API. Names and types of everything outside of pod
templates are checked, and that nothing required is missing; rules that its operator checks beyond
that (a head that is asked for twice, an entrypoint without a cluster) are not.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
YES: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
POD: Schema = {"type": "object"}
"""Checked by Kubernetes' own types."""


def closed(required: list[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


HEAD = closed(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService=POD,
    enableIngress=YES,
    rayStartParams=TEXTS,
    template=POD,
)
WORKERS = closed(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=TEXTS,
    template=POD,
    scaleStrategy=closed([], workersToDelete={"type": "array", "items": TEXT}),
)
CLUSTER = closed(
    ["headGroupSpec"],
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES,
    autoscalerOptions=closed(
        [],
        resources=POD,
        image=TEXT,
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headServiceAnnotations=TEXTS,
    suspend=YES,
)
JOB = closed(
    [],
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=POD,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=closed([], backoffLimit=COUNT),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=YES,
    suspend=YES,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}
