"""The network policies of docker/k8s: what a pod may call, the callee admits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

K8S = Path(__file__).parents[2] / "docker" / "k8s"
DOCUMENTS = [
    document
    for path in [*K8S.glob("*.yaml"), *K8S.glob("graders/*.yaml")]
    for document in yaml.safe_load_all(path.read_text())
]
POLICIES = [document["spec"] for document in DOCUMENTS if document["kind"] == "NetworkPolicy"]
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]
    for document in DOCUMENTS
    if document["kind"] in ("Deployment", "StatefulSet")
}
PORTS = {"server": 8000, "vllm": 8001, "graders": 8002, "postgres": 5432}


def selects(selector: dict, app: str) -> bool:
    if selector.get("matchLabels", {}).get("app", app) != app:
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["key"] == "app" and expression["operator"] in ("In", "NotIn")
        if (app in expression["values"]) != (expression["operator"] == "In"):
            return False
    return True


def allows(direction: str, app: str, peer: str, port: int) -> bool:
    """Whether the policies of ``app`` let it call ``peer`` ("egress") or be called by it ("ingress")."""
    rules = [
        rule
        for policy in POLICIES
        if direction.capitalize() in policy["policyTypes"] and selects(policy["podSelector"], app)
        for rule in policy.get(direction, [])
    ]
    return any(_admits(rule, "to" if direction == "egress" else "from", peer, port) for rule in rules)


def _admits(rule: dict, peers: str, peer: str, port: int) -> bool:
    if port not in [entry["port"] for entry in rule["ports"]]:
        return False
    selectors = [entry["podSelector"] for entry in rule.get(peers, []) if "podSelector" in entry]
    return peers not in rule or any(selects(selector, peer) for selector in selectors)


def secrets_of(app: str) -> set[str]:
    spec = PODS[app]["spec"]
    variables = [
        variable
        for container in spec["containers"] + spec.get("initContainers", [])
        for variable in container.get("env", [])
    ]
    return {variable["valueFrom"]["secretKeyRef"]["key"] for variable in variables if "valueFrom" in variable}


def volumes_of(app: str) -> list[dict]:
    return PODS[app]["spec"]["volumes"]


@pytest.mark.parametrize("caller", PODS)
@pytest.mark.parametrize("callee", PORTS)
def test_a_pod_that_may_call_another_is_admitted_there(caller, callee):
    port = PORTS[callee]
    if caller != callee and allows("egress", caller, callee, port):
        assert allows("ingress", callee, caller, port)


@pytest.mark.parametrize("app", [app for app in PODS if app != "postgres"])
def test_the_pods_with_the_databases_password_are_those_that_reach_it(app):
    reaches = allows("egress", app, "postgres", 5432) and allows("ingress", "postgres", app, 5432)
    assert reaches == ("POSTGRES_PASSWORD" in secrets_of(app))


def test_server_and_worker_reach_what_they_need():
    for app in ("server", "worker"):
        for callee, port in PORTS.items():
            assert allows("egress", app, callee, port)
    assert not allows("ingress", "vllm", "graders", 8001)


def test_vllm_has_no_volume_of_the_users():
    claims = [volume["persistentVolumeClaim"] for volume in volumes_of("vllm") if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "models"}]
