"""The manifests against Kubernetes' own schemas, and the container that they run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from scripts import paths
from scripts.server.properties import read_properties
from scripts.server.torchserve import TorchServe
from tests.helpers import REAL

KUBERNETES = "1.37"
MANIFESTS = paths.CONFIG / "kubernetes"
VARIANTS = ("base", "gpu-t4", "kserve")
DOCKERFILE = paths.CONFIG / "Dockerfile"

# KServe 0.21, ComponentExtensionSpec: what a predictor has beside the members of a pod's spec.
KSERVE_MEMBERS = {
    "annotations": dict,
    "labels": dict,
    "timeout": int,
    "minReplicas": int,
    "maxReplicas": int,
    "containerConcurrency": int,
}

Manifest = dict[str, Any]


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def render(variant: str) -> dict[str, Manifest]:
    """What `kubectl apply -k` sends, by kind."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(MANIFESTS / variant)], capture_output=True, check=True
    )
    manifests = list(yaml.safe_load_all(done.stdout))
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    assert len(by_kind) == len(manifests)
    return by_kind


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Manifest]]:
    return {variant: render(variant) for variant in VARIANTS}


@pytest.fixture(params=VARIANTS)
def manifests(
    request: pytest.FixtureRequest, rendered: dict[str, dict[str, Manifest]]
) -> dict[str, Manifest]:
    variant: str = request.param
    return rendered[variant]


def pod_of(manifests: dict[str, Manifest]) -> Manifest:
    """The pod of the Deployment, or the one that KServe makes of a predictor."""
    if "Deployment" in manifests:
        template = manifests["Deployment"]["spec"]["template"]
        return {"apiVersion": "v1", "kind": "Pod", **template}
    predictor = manifests["InferenceService"]["spec"]["predictor"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {member: predictor[member] for member in ("labels", "annotations")},
        "spec": {k: v for k, v in predictor.items() if k not in KSERVE_MEMBERS},
    }


def test_manifests_fit_their_schemas(manifests: dict[str, Manifest]) -> None:
    for kind, manifest in manifests.items():
        if kind != "InferenceService":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_inference_service_fits_kserves_schema(
    rendered: dict[str, dict[str, Manifest]],
) -> None:
    service = rendered["kserve"]["InferenceService"]
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert service["spec"].keys() == {"predictor"}
    predictor = service["spec"]["predictor"]
    for member in predictor.keys() & KSERVE_MEMBERS.keys():
        assert isinstance(predictor[member], KSERVE_MEMBERS[member])
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    kubernetes_validate.validate(pod_of(rendered["kserve"]), KUBERNETES, strict=True)


def test_a_misspelt_member_is_noticed(rendered: dict[str, dict[str, Manifest]]) -> None:
    pod = pod_of(rendered["kserve"])
    pod["spec"] = {**pod["spec"], "securitycontext": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="securitycontext"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_pods_have_no_rights_to_spare(manifests: dict[str, Manifest]) -> None:
    spec = pod_of(manifests)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert all(volume.keys() == {"name", "emptyDir"} for volume in spec["volumes"])
    assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])
    enforced = manifests["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


def test_probes_ask_nginx_which_holds_the_token(manifests: dict[str, Manifest]) -> None:
    (container,) = pod_of(manifests)["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/ping", "port": "probes"}
    assert container["ports"][1] == {"name": "probes", "containerPort": 8001}


def test_a_pod_that_cannot_answer_is_unready_within_ten_seconds(
    manifests: dict[str, Manifest],
) -> None:
    """nginx's last answer counts for 3 s, and its prediction takes up to 3."""
    (container,) = pod_of(manifests)["spec"]["containers"]
    probe = container["readinessProbe"]
    assert probe["timeoutSeconds"] > 3 and probe["failureThreshold"] == 1
    assert 3 + probe["periodSeconds"] + 3 < 10


def test_only_load_balancers_may_say_who_the_client_is(manifests: dict[str, Manifest]) -> None:
    """A pod of a trusted network that could connect would choose its address itself."""
    assert manifests["ConfigMap"]["data"]["TRUSTED"] == "10.0.0.0/8"
    rules = manifests["NetworkPolicy"]["spec"]["ingress"]
    (admitted,) = [rule["from"] for rule in rules if {"port": 8000} in rule["ports"]]
    assert admitted == [
        {"namespaceSelector": {"matchLabels": {"visionserve/load-balancer": "true"}}}
    ]


def test_management_cannot_be_reached(manifests: dict[str, Manifest]) -> None:
    (container,) = pod_of(manifests)["spec"]["containers"]
    policy = manifests["NetworkPolicy"]["spec"]
    admitted = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert admitted == {port["containerPort"] for port in container["ports"]} == {8000, 8001, 8082}
    assert all(rule["from"] for rule in policy["ingress"])
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_selectors_and_targets_exist(manifests: dict[str, Manifest]) -> None:
    labels = pod_of(manifests)["metadata"]["labels"].items()
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    if "Deployment" in manifests:
        assert manifests["Service"]["spec"]["selector"].items() <= labels
        assert manifests["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
        assert target == manifests["Deployment"]["metadata"]["name"]
    else:
        service = manifests["InferenceService"]["metadata"]
        assert target == f"{service['name']}-predictor"
        assert service["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    (container,) = pod_of(manifests)["spec"]["containers"]
    (source,) = container["envFrom"]
    assert source["configMapRef"]["name"] == manifests["ConfigMap"]["metadata"]["name"]


def test_a_gpu_pod_has_a_t4_of_its_own(rendered: dict[str, dict[str, Manifest]]) -> None:
    spec = pod_of(rendered["gpu-t4"])["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-cuda")
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "Tesla-T4"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_pods_are_scaled_by_a_metric_that_torchserve_has(
    manifests: dict[str, Manifest], server: TorchServe
) -> None:
    (wanted,) = manifests["HorizontalPodAutoscaler"]["spec"]["metrics"]
    adapter = yaml.safe_load((MANIFESTS / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert wanted["pods"]["metric"]["name"] == rule["name"]["as"]

    server.client.predict(REAL, b"no image")
    properties = read_properties(server.state / "config.properties")
    exposed = requests.get(f"{properties['metrics_address']}/metrics", timeout=60).text
    used = set(re.findall(r"\bts_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert used == {"ts_queue_latency_microseconds", "ts_inference_requests_total"}
    for name in used:
        assert re.search(rf"^{name}{{", exposed, re.MULTILINE)
        assert f"# TYPE {name} counter" in exposed


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run(
        [tool("hadolint"), "--no-color", str(DOCKERFILE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, a continued one as one line."""
    lines = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", lines).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined if line]


def test_the_container_is_what_the_pods_expect(
    instructions: list[tuple[str, str]], manifests: dict[str, Manifest]
) -> None:
    spec = pod_of(manifests)["spec"]
    context = spec["securityContext"]
    last = dict(instructions)
    assert last["USER"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    (container,) = spec["containers"]
    ports = [str(port["containerPort"]) for port in container["ports"]]
    assert last["EXPOSE"].split() == ports
    assert last["STOPSIGNAL"] == "SIGQUIT"
    state = f"{last['WORKDIR']}/{paths.STATE.name}"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {state, "/tmp"}
    assert "8001/ping" in last["HEALTHCHECK"]
    used = set(re.findall(r"\$(\w+)", last["CMD"]))
    assert used == {"PROFILE"} | manifests["ConfigMap"]["data"].keys()


def test_the_container_has_profiles_that_keep_torchserve_on_loopback(
    instructions: list[tuple[str, str]],
) -> None:
    profiles = [
        value.removeprefix("PROFILE=")
        for instruction, value in instructions
        if instruction == "ENV" and value.startswith("PROFILE=")
    ]
    assert profiles == ["server", "gpu-t4"]
    for profile in profiles:
        properties = read_properties(paths.CONFIG / profile / "config.properties")
        assert properties["management_address"] == "http://127.0.0.1:8081"
        assert properties["inference_address"] == "http://127.0.0.1:8080"
        assert properties.get("disable_token_authorization") != "true"


def test_the_containers_commands_exist(instructions: list[tuple[str, str]]) -> None:
    _, _, script = json.loads(dict(instructions)["CMD"])
    commands = re.findall(r"visionserve (\w+) (\w+) ([^&]*)", script)
    assert [name for name, _, _ in commands] == ["serve", "proxy"]
    for name, command, options in commands:
        words = [sys.executable, "-m", "scripts", name, command, "--help"]
        done = subprocess.run(words, cwd=paths.ROOT, capture_output=True, text=True, check=True)
        assert command in done.stdout
        assert set(re.findall(r"--\w+", options)) <= set(re.findall(r"--\w+", done.stdout))


def test_the_build_has_the_files_that_it_copies(instructions: list[tuple[str, str]]) -> None:
    copied = {
        value.split()[0]
        for instruction, value in instructions
        if instruction == "COPY" and not value.startswith("--from")
    }
    assert all((paths.ROOT / source).exists() for source in copied)
    ignored = (paths.ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    admitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {Path(source).parts[0] for source in copied} == admitted
