"""What is under deploy/ fits the server: schemas, commands, settings, routes, files and versions.

No container is built here. The wheel that the images install is tested in test_wheel.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from guard.vllm.private import CHECKED_VERSION
from server.auth.access import role_of
from server.cli.main import app
from server.launch import serve
from server.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
OLDEST, NEWEST = "1.29.0", kubernetes_validate.latest_version()
"""The oldest and newest version of Kubernetes whose schemas are checked."""

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Returns every object that the kustomization names, by file."""
    files = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert set(files) == {path.name for path in KUBERNETES.iterdir()} - {"kustomization.yaml"}
    return [
        manifest
        for name in files
        for manifest in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]


MANIFESTS = manifests()


def of_kind(kind: str) -> Manifest:
    """Returns the only object of a kind."""
    (match,) = [manifest for manifest in MANIFESTS if manifest["kind"] == kind]
    return match


def values_under(value: Any, key: str) -> Iterator[Any]:
    """Yields what stands under a key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for child in value.values():
            yield from values_under(child, key)
    elif isinstance(value, list):
        for child in value:
            yield from values_under(child, key)


CONTAINERS = [container for all_ in values_under(MANIFESTS, "containers") for container in all_]
SERVICES: Manifest = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
OWN_SERVICES = {
    name: service for name, service in SERVICES.items() if service["image"] == "setback:cpu"
}
COMMANDS = [
    *([*container["args"]] for container in CONTAINERS),
    *([*service["command"]] for service in OWN_SERVICES.values()),
    *(yaml.safe_load(line) for line in re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)),
]
VARIABLES = sorted(
    {variable["name"] for all_ in values_under(MANIFESTS, "env") for variable in all_}
    | {name for service in OWN_SERVICES.values() for name in service["environment"]}
)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "manifest",
    MANIFESTS,
    ids=[f"{manifest['kind']}-{manifest['metadata']['name']}" for manifest in MANIFESTS],
)
def test_kubernetes_knows_every_field(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_exists(command: list[str]) -> None:
    if command[0] == "serve":
        options = serve.parse(command[1:])
        assert options.host == "0.0.0.0"
    else:
        done = CliRunner().invoke(app, [*command, "--help"])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_is_a_setting(name: str) -> None:
    if name == "DATABASE_URL":
        return
    field = name.removeprefix("SETBACK_").lower()
    nested = field.removeprefix("refine_")
    assert field in Settings.model_fields or nested in Settings().refine.__class__.model_fields


def test_probes_need_no_key() -> None:
    paths = [probe["path"] for probe in values_under(MANIFESTS, "httpGet")]
    assert sorted(paths) == ["/health", "/ready", "/ready"]
    assert {role_of("GET", path) for path in paths} == {None}
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    # vLLM without the guard has no /ready.
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_names_and_labels_fit_each_other() -> None:
    deployment = of_kind("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        of_kind("Service")["spec"]["selector"],
    ]
    selectors.append(of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    selectors.append(of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    for selector in selectors:
        assert selector.items() <= labels
    target = of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    claims = {claim["claimName"] for claim in values_under(MANIFESTS, "persistentVolumeClaim")}
    assert claims == {of_kind("PersistentVolumeClaim")["metadata"]["name"]}


def test_no_pod_has_privileges() -> None:
    for pod in (template["spec"] for template in values_under(MANIFESTS, "template")):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert DOCKERFILE.count("USER 10001") == DOCKERFILE.count("ENTRYPOINT") == 2


def test_the_images_are_made_of_what_is_there() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"^COPY --from=(\S+)", DOCKERFILE, re.MULTILINE)) <= stages
    assert {service["build"]["target"] for service in OWN_SERVICES.values()} <= stages
    for path in re.findall(r"requirements/\S+\.txt", DOCKERFILE):
        assert (ROOT / path.removeprefix("/")).is_file()
    assert f"vllm/vllm-openai:v{CHECKED_VERSION} " in DOCKERFILE
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert {"guard", "migrations", "refine", "server", "pyproject.toml", "requirements"} <= kept
    assert all((ROOT / path).exists() for path in kept)


def test_what_compose_mounts_is_there_and_no_port_is_open_to_others() -> None:
    mounted = [
        volume.split(":")[0] for one in SERVICES.values() for volume in one.get("volumes", [])
    ]
    files = [path for path in mounted if path.startswith(".")]
    assert len(files) == 4
    assert all((DEPLOY / path).exists() for path in files)
    for port in (port for service in SERVICES.values() for port in service.get("ports", [])):
        assert port.startswith("127.0.0.1:")
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= SERVICES.keys()
