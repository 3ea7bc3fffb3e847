"""The manifests against Kubernetes' own schemas, and the container that they run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import kubernetes_validate
import pytest
import requests
import yaml

from tests.helpers import REAL
from visionserve.config import HandlerConfig
from visionserve_tools import emulation, paths
from visionserve_tools.commands import image
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.torchserve import TorchServe

KUBERNETES, OLDEST = "1.37", "v1.33"
MANIFESTS = paths.CONFIG / "kubernetes"
VARIANTS = ("base", "gpu-t4", "kserve")
DOCKERFILE = paths.CONFIG / "Dockerfile"

# KServe 0.21, ComponentExtensionSpec: what a predictor has beside the members of a pod's spec.
KSERVE_MEMBERS = {
    "annotations": dict,
    "deploymentStrategy": dict,
    "labels": dict,
    "timeout": int,
    "minReplicas": int,
    "maxReplicas": int,
    "containerConcurrency": int,
}

# NVIDIA's container toolkit sets up no GPU in a user namespace:
# https://github.com/NVIDIA/cloud-native-docs/pull/403
WITHOUT_USER_NAMESPACE = {"gpu-t4"}
# A pod counts until it has ended, and an update starts the next one meanwhile.
ENDING = 3
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Manifest = dict[str, Any]


def amount(quantity: str) -> float:
    """Return a quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit] if unit else float(number)


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def render(variant: str, root: Path = MANIFESTS) -> dict[str, Manifest]:
    """What `kubectl apply -k` sends, by kind."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(root / variant)], capture_output=True, check=True
    )
    manifests = list(yaml.safe_load_all(done.stdout))
    by_kind = {named(manifest): manifest for manifest in manifests}
    assert len(by_kind) == len(manifests)
    return by_kind


def named(manifest: Manifest) -> str:
    """A manifest's kind, and its name where that is not the project's."""
    name, kind = manifest["metadata"]["name"], manifest["kind"]
    return kind if name == "visionserve" else f"{kind} {name}"


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Manifest]]:
    return {variant: render(variant) for variant in VARIANTS}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def manifests(variant: str, rendered: dict[str, dict[str, Manifest]]) -> dict[str, Manifest]:
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
        assert kind == "Namespace" or manifest["metadata"]["namespace"] == "visionserve"
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


def test_pods_have_no_rights_to_spare(variant: str, manifests: dict[str, Manifest]) -> None:
    spec = pod_of(manifests)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    account = manifests["ServiceAccount"]
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert not {"RoleBinding", "ClusterRoleBinding"} & manifests.keys()
    assert spec.get("hostUsers") is (None if variant in WITHOUT_USER_NAMESPACE else False)
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"initContainers", "ephemeralContainers"} & spec.keys()
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert re.fullmatch(r"visionserve:\d+\.\d+\.\d+(-cuda)?", container["image"])
    assert "kubernetes.io/arch" not in yaml.safe_dump(spec), "a tag is of both architectures"
    assert all(volume.keys() == {"name", "emptyDir"} for volume in spec["volumes"])
    assert manifests["ServiceAccount default"]["automountServiceAccountToken"] is False
    labels = manifests["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce-version"] == OLDEST
    for mode in ("enforce", "warn", "audit"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_an_image_has_a_place_for_its_digest(variant: str, tmp_path: Path) -> None:
    """As the comments beside the tags say."""
    shutil.copytree(MANIFESTS, tmp_path, dirs_exist_ok=True)
    digest = f"sha256:{'0' * 64}"
    for name in {"base", variant}:
        file = tmp_path / name / "kustomization.yaml"
        text = re.sub(r"^ +newTag: .*\n", "", file.read_text(), flags=re.MULTILINE)
        text = text.replace("# newName: REGISTRY", "newName: here.example")
        file.write_text(text.replace("# digest: sha256:DIGEST", f"digest: {digest}"))
    (container,) = pod_of(render(variant, tmp_path))["spec"]["containers"]
    assert container["image"] == f"here.example/visionserve@{digest}"


def test_pods_are_kept_apart_and_replaced_one_at_a_time(manifests: dict[str, Manifest]) -> None:
    pod = pod_of(manifests)
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    assert sum(strategy(manifests).values()) == 1


def test_a_pod_has_room_for_all_that_it_writes(manifests: dict[str, Manifest]) -> None:
    """On its node's disk and in memory, at the limits of logs, cache and bodies."""
    spec = pod_of(manifests)["spec"]
    (container,) = spec["containers"]
    rooms = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert rooms["state"]["medium"] == "Memory" and "medium" not in rooms["tmp"]
    limits, requests_ = (container["resources"][kind] for kind in ("limits", "requests"))
    assert requests_.keys() == {"cpu", "memory", "ephemeral-storage"}
    assert {"memory", "ephemeral-storage"} <= limits.keys()

    # nginx keeps a body in a file for each connection, another one where it goes on to TorchServe,
    # and the answer.
    bodies = (1024 + 2 * 48) * HandlerConfig().max_body_bytes
    assert bodies < amount(rooms["tmp"]["sizeLimit"]) < amount(limits["ephemeral-storage"])

    (log_bytes,) = re.findall(r"ENV LOG_MEGABYTES=(\d+)", DOCKERFILE.read_text())
    log4j = ElementTree.parse(paths.CONFIG / "log4j2.xml")
    kept = [int(rule.attrib["max"]) for rule in log4j.iter("DefaultRolloverStrategy")]
    files = sum(1 + rolled for rolled in kept)
    profile = "gpu-t4" if container["image"].endswith("-cuda") else "server"
    settings = yaml.safe_load((paths.CONFIG / profile / "model-config.yaml").read_text())
    cache = settings["handler"]["cache"]["size_mb"]
    archive = 2 * 50  # ResNet-18 in FP32, packed and unpacked
    written = (files * int(log_bytes) + cache + archive) * 1_000_000
    assert written < amount(rooms["state"]["sizeLimit"]) < amount(limits["memory"])


def strategy(manifests: dict[str, Manifest]) -> dict[str, int]:
    """How many pods more, and how many fewer, an update may make."""
    if "Deployment" in manifests:
        rolling: dict[str, int] = manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    else:
        predictor = manifests["InferenceService"]["spec"]["predictor"]
        rolling = predictor["deploymentStrategy"]["rollingUpdate"]
    return rolling


def test_the_quota_holds_all_pods_and_no_more(manifests: dict[str, Manifest]) -> None:
    (container,) = pod_of(manifests)["spec"]["containers"]
    pods = manifests["HorizontalPodAutoscaler"]["spec"]["maxReplicas"]
    pods += strategy(manifests)["maxSurge"] + ENDING
    wanted = {"pods": pods, "services.loadbalancers": 0, "services.nodeports": 0}
    for kind, resources in container["resources"].items():
        for resource, quantity in resources.items():
            # What a pod may not share, its limit requests.
            asked = "requests" if resource == "nvidia.com/gpu" else kind
            wanted[f"{asked}.{resource}"] = pods * amount(quantity)
    hard = manifests["ResourceQuota"]["spec"]["hard"]
    assert {name: amount(quantity) for name, quantity in hard.items()} == wanted

    (rule,) = manifests["LimitRange"]["spec"]["limits"]
    assert rule["type"] == "Container"
    for resource in ("memory", "ephemeral-storage"):
        assert amount(rule["defaultRequest"][resource]) <= amount(rule["default"][resource])
        assert amount(rule["default"][resource]) < amount(
            container["resources"]["limits"][resource]
        )


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


def test_nothing_is_admitted_that_no_policy_names(manifests: dict[str, Manifest]) -> None:
    """A pod that gets into the namespace by mistake reaches nobody, and nobody reaches it."""
    assert manifests["NetworkPolicy default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


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


def test_every_base_image_is_named_by_its_digest() -> None:
    text = DOCKERFILE.read_text()
    stages = re.findall(r"^FROM .+ AS (\S+)$", text, re.MULTILINE)
    for base in re.findall(r"^FROM (?:--platform=\S+ )?(\S+)", text, re.MULTILINE):
        (base,) = (
            re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE) if base == "${BASE}" else [base]
        )
        digest = re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", base)
        assert digest or base.replace("${DEVICE}", "cpu") in stages
    for copied in re.findall(r"^COPY --from=(\S+)", text, re.MULTILINE):
        assert copied in stages
    assert not re.search(r"^# *(syntax|escape) *=", text, re.MULTILINE)


def test_an_image_that_cannot_be_built_here_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = next(one for one in emulation.ARCHITECTURES.values() if one != emulation.own())
    monkeypatch.setattr(emulation, "TABLE", tmp_path)
    monkeypatch.setattr(emulation, "LINES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["image", "--arch", other])
    assert image.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"This machine runs no programs of {other}: apt-get install qemu-user-")
    (tmp_path / "qemu-aarch64").touch()
    (tmp_path / "qemu-x86_64").touch()
    with emulation.emulated(other) as entered:
        assert entered == []


def test_docker_starts_the_container_anew_and_gives_it_no_rights_to_spare() -> None:
    comment = " ".join(re.findall(r"^# +(.*?)\\?$", DOCKERFILE.read_text(), re.MULTILINE))
    (run,) = re.findall(r"docker run .* visionserve:1\.0\.0\b", comment)
    for option in (
        *("--restart unless-stopped", "--read-only", "--cap-drop ALL", "--memory 5g"),
        "--pids-limit 1024",
        *("--security-opt no-new-privileges", "--tmpfs /opt/visionserve/.torchserve:"),
    ):
        assert option in run


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
        words = [sys.executable, "-m", "visionserve_tools", name, command, "--help"]
        done = subprocess.run(words, cwd=paths.ROOT, capture_output=True, text=True, check=True)
        assert command in done.stdout
        assert set(re.findall(r"--\w+", options)) <= set(re.findall(r"--\w+", done.stdout))


def test_the_build_has_the_files_that_it_copies(instructions: list[tuple[str, str]]) -> None:
    copied = {
        source
        for instruction, value in instructions
        if instruction == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert all((paths.ROOT / source).exists() for source in copied)
    ignored = (paths.ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    admitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    tops = {source if source in admitted else Path(source).parts[0] for source in copied}
    assert tops == admitted
