"""What the manifests of an installation have in common: their heads, and pods that may do nothing to their node."""

from __future__ import annotations

import hashlib
from typing import Any

Manifest = dict[str, Any]


def manifest(version: str, kind: str, name: str, **more: Any) -> Manifest:
    """A manifest whose label `app` is its name."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {"app": name}}, **more}


def service(name: str, port: int, **more: Any) -> Manifest:
    """A service for the pods of the workload of the same name."""
    ports = [{"port": port, "targetPort": port}]
    return manifest("v1", "Service", name, spec={"selector": {"app": name}, "ports": ports, **more})


def workload(version: str, kind: str, name: str, pod: dict[str, Any], **more: Any) -> Manifest:
    """What keeps a pod running, or a job."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels, **pod.pop("metadata", {})}, "spec": pod}
    selector = {"replicas": 1, "selector": {"matchLabels": labels}} if kind != "Job" else {}
    return manifest(version, kind, name, spec={**selector, **more, "template": template})


def pod_of(container: dict[str, Any], *, user: int = 1000, **more: Any) -> dict[str, Any]:
    """A pod of one container that may do nothing to its node, and nothing to the cluster unless `more` says so."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called X would put variables X_PORT, ... into the environment
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **more,
        "containers": [confined(container)],
    }


def confined(container: dict[str, Any]) -> dict[str, Any]:
    """A container without any capability."""
    return {**container, "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}


def resources(cpu: str, memory: str, limit: str) -> dict[str, Any]:
    """What a container requests, and the memory that it may use."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


def env(**values: str) -> list[dict[str, Any]]:
    """Environment variables of a container."""
    return [{"name": name, "value": value} for name, value in values.items()]


def digest(text: str) -> str:
    """Ten digits that are others if the text is another."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]
