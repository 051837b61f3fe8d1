"""config/kubernetes: what Kubernetes accepts, and what fits together and to the programs that it starts."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import click
import kubernetes_validate
import pytest
import yaml

from callmill.cli.local_fleet import KILL_AFTER_GRACE_S
from callmill.cli.program import callmill
from callmill.config.profiles import load_profiles
from callmill.config.settings import Settings
from callmill.dashboard.scaling_site import PATH
from callmill.overview.scaling_adviser import ScalingAdvice

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = [
    (path.name, manifest)
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(path.read_text())
]
BUILT_IN = [manifest for _, manifest in MANIFESTS if manifest["kind"] != "ScaledObject"]
KUBERNETES = ("1.30", "1.33", "1.36")


def the(kind, name):
    """Return one manifest."""
    (found,) = [each for _, each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


DEPLOYMENTS = [manifest for manifest in BUILT_IN if manifest["kind"] == "Deployment"]
CONTAINERS = [container for each in DEPLOYMENTS for container in each["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", BUILT_IN, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_kubernetes_knows_every_field(manifest, version):
    """Each object is what the schema of its version of Kubernetes says, without a field that it does not know."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_validation_can_fail():
    """A field that Kubernetes does not know is found: the check above checks something."""
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


def test_keda_knows_every_field():
    """The ScaledObject has no field but those of KEDA's definition, as its CRD keda.sh/v1alpha1 has them."""
    scaled = the("ScaledObject", "callmill-worker")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    numbers = {"minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"}
    assert set(spec) == {"scaleTargetRef", "advanced", "triggers"} | numbers
    assert all(isinstance(spec[name], int) for name in numbers)
    assert set(spec["scaleTargetRef"]) == {"name"}
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    hpa = the("HorizontalPodAutoscaler", "callmill-worker")  # whose schema is checked, and which has the same part
    assert behavior == hpa["spec"]["behavior"]
    (trigger,) = spec["triggers"]
    assert set(trigger) == {"type", "metricType", "metadata"}
    assert (trigger["type"], trigger["metricType"]) == ("metrics-api", "AverageValue")
    assert set(trigger["metadata"]) == {"url", "valueLocation", "targetValue"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_scalers_ask_what_is_told():
    """KEDA asks a service that there is, at its listener's port, for a number in the answer; the HPA for the metric."""
    scaled = the("ScaledObject", "callmill-worker")
    told = scaled["spec"]["triggers"][0]["metadata"]
    url = urlsplit(told["url"])
    service = the("Service", "callmill-dashboard")
    namespace = KUSTOMIZATION["namespace"]
    assert url.hostname == f"{service['metadata']['name']}.{namespace}.svc.cluster.local"
    (port,) = [port for port in service["spec"]["ports"] if port["port"] == url.port]
    assert port["targetPort"] == "metrics"
    assert url.path == PATH
    assert ScalingAdvice.__annotations__[told["valueLocation"]] == "int"
    assert told["targetValue"] == "1"
    hpa = the("HorizontalPodAutoscaler", "callmill-worker")
    assert hpa["spec"]["metrics"][0]["external"]["metric"]["name"] == "callmill_workers_wanted"
    assert hpa["metadata"]["namespace"] == namespace
    for scaler in (scaled, hpa):
        assert scaler["spec"]["scaleTargetRef"]["name"] == the("Deployment", "callmill-worker")["metadata"]["name"]
    assert "replicas" not in the("Deployment", "callmill-worker")["spec"]


def test_selectors_meet_pods():
    """Whatever selects pods by labels selects those of exactly one deployment; ports that are named are there."""
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in DEPLOYMENTS}
    selectors = []
    for _, each in MANIFESTS:
        spec = each.get("spec", {})
        if each["kind"] in {"Deployment", "PodDisruptionBudget"}:
            selectors.append((each, spec["selector"]["matchLabels"]))
        elif each["kind"] == "Service":
            selectors.append((each, spec["selector"]))
        elif each["kind"] == "NetworkPolicy":
            selectors.append((each, spec["podSelector"]["matchLabels"]))
    assert len(selectors) == 6
    for each, labels in selectors:
        met = [name for name, pod in pods.items() if labels.items() <= pod["metadata"]["labels"].items()]
        assert met == [each["metadata"]["name"]]
    ports = {port["name"] for port in pods["callmill-dashboard"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in the("Service", "callmill-dashboard")["spec"]["ports"]} == ports
    rules = the("NetworkPolicy", "callmill-dashboard")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports


def test_workers_get_the_time_that_they_need():
    """The grace is longer than what a worker takes for itself, and what is allowed for beyond."""
    pod = the("Deployment", "callmill-worker")["spec"]["template"]["spec"]
    grace_s = Settings.model_fields["shutdown_grace_s"].default
    assert pod["terminationGracePeriodSeconds"] >= grace_s + KILL_AFTER_GRACE_S


def test_probes_ask_what_there_is():
    """The worker's probe runs the file that the image has at that place; the dashboard's ask for its health check."""
    image = (ROOT / "workers/Dockerfile").read_text()
    (source, target) = re.search(r"^COPY --from=build /src/(\S+healthcheck\.py) (\S+)$", image, re.MULTILINE).groups()
    assert (ROOT / source).is_file()
    worker, dashboard = CONTAINERS[1], CONTAINERS[0]
    for probe in ("startupProbe", "livenessProbe"):
        assert worker[probe]["exec"]["command"] == ["python", target]
    for probe in ("readinessProbe", "livenessProbe"):
        assert dashboard[probe]["httpGet"] == {"path": "/healthcheck", "port": "http"}


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: each["name"])
def test_the_command_line_takes_the_arguments(container):
    """Arguments parse, ports that are named are those that the arguments open, and settings exist."""
    name, *arguments = container["args"]
    parsed = callmill.get_command(click.Context(callmill), name).make_context(name, list(arguments)).params
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    assert ports == ({"http": parsed["port"], "metrics": parsed["metrics_port"]} if ports else {})
    known = {f"CALLMILL_{field.upper()}" for field in Settings.model_fields} | {"FLOWER_BASIC_AUTH"}
    assert {variable["name"] for variable in container["env"]} <= known
    (mounted,) = [mount for mount in container["volumeMounts"] if mount["name"] == "apis"] or [None]
    assert (mounted is not None) == (name == "worker")
    if mounted:
        assert f"CALLMILL_APIS={mounted['mountPath']}/apis.toml" in (ROOT / "workers/Dockerfile").read_text()


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["metadata"]["name"])
def test_pods_have_no_rights(deployment):
    """Pods run as the image's user, on a file system that they cannot write, with no right on node or cluster."""
    pod = deployment["spec"]["template"]["spec"]
    user = re.search(r"--uid (\d+)", (ROOT / "workers/Dockerfile").read_text())[1]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == rights
    assert {"requests", "limits"} == set(container["resources"])


def test_kustomization_lists_every_file():
    """Every manifest is applied, but for the alternative; the image and the profiles are those that pods name."""
    files = {name for name, _ in MANIFESTS}
    assert set(KUSTOMIZATION["resources"]) == files - {"hpa.yaml"}
    assert the("Namespace", KUSTOMIZATION["namespace"])
    assert {container["image"] for container in CONTAINERS} == {image["name"] for image in KUSTOMIZATION["images"]}
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    volumes = the("Deployment", "callmill-worker")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "apis", "configMap": {"name": generated["name"]}} in volumes
    (profiles,) = generated["files"]
    assert load_profiles(FOLDER / profiles)


def test_the_page_creates_every_secret():
    """Every secret that pods name, with its key, is created by the page's commands."""
    page = (ROOT / "docs/operate/kubernetes.md").read_text()
    for container in CONTAINERS:
        for variable in container["env"]:
            if (source := variable.get("valueFrom")) is not None:
                secret = source["secretKeyRef"]
                assert f"secret generic {secret['name']} --from-literal={secret['key']}=" in page
        for source in container.get("envFrom", ()):
            assert f"secret generic {source['secretRef']['name']} --from-literal=" in page
