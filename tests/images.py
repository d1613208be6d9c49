"""Builds the images of a Dockerfile without a container runtime: its steps run in roots that
mmdebstrap made, its processes without a network. Knows the instructions of deploy/Dockerfile.

Every official image that a stage begins with is replaced by a Debian with Python. The roots get
pip's configuration and the name servers of this machine; images that Docker builds do not.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

PROGRAMS = ("mmdebstrap", "unshare", "ip")
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENTER = """
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
for path in $2; do
    if [ -d "$path" ]; then mkdir -p "$1$path"
    else mkdir -p "$(dirname "$1$path")" && touch "$1$path"; fi
    mount --bind "$path" "$1$path"
done
ip link set lo up
root=$1 user=$3 folder=$4; shift 4
cd "$root" && exec chroot --userspec="$user" . sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


@dataclass(frozen=True)
class Image:
    """A built stage: its root, and what its instructions say about its processes."""

    root: Path
    user: str = "0"
    folder: str = "/"
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    healthcheck: Sequence[str] = ()

    def enter(self, *command: str, online: bool = False, **options: str) -> list[str]:
        """Returns the command that runs another one in this image, as its user, in a network of its
        own or in this machine's."""
        environment = {**self.environment, **options}
        spaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if online else ["--net"])]
        paths = " ".join(_paths_of_pip()) if online else ""
        inside = ["env", "-i", *(f"{k}={v}" for k, v in environment.items()), *command]
        user, group = self.user, self.user
        arguments = [str(self.root), paths, f"{user}:{group}", self.folder]
        return ["unshare", *spaces, "sh", "-ec", _ENTER, "sh", *arguments, *inside]


def build(dockerfile: Path, context: Path, target: str, work: Path) -> Image:
    """Builds a stage, and those that it copies from."""
    base = work / "base.tar"
    if not base.exists():
        options = ["--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(base)]
        subprocess.run(["mmdebstrap", *options], check=True, capture_output=True)
    stages = dict(_stages(dockerfile.read_text()))
    images: dict[str, Image] = {}
    for name in _needed(stages, target):
        image = _from(base, work / name)
        for instruction, argument in stages[name]:
            image = _step(image, instruction, argument, context, images)
        images[name] = image
    return images[target]


def _stages(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields each stage's name and instructions."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    steps = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    begins = [n for n, step in enumerate(steps) if step[0] == "FROM"]
    for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True):
        name = steps[begin][1].split(" AS ")[1]
        yield name, [(step[0], step[1].strip()) for step in steps[begin + 1 : end]]


def _needed(stages: Mapping[str, Sequence[tuple[str, str]]], target: str) -> Iterator[str]:
    """Yields the stages that a stage copies from, before it."""
    for instruction, argument in stages[target]:
        if instruction == "COPY" and argument.startswith("--from="):
            yield from _needed(stages, argument.split()[0].removeprefix("--from="))
    yield target


def _from(base: Path, root: Path) -> Image:
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    subprocess.run(["tar", "-xf", str(base), "-C", str(root)], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    (root / "etc/pip.conf").write_text(_pip_configuration())
    return Image(root)


def _step(
    image: Image, instruction: str, argument: str, context: Path, images: Mapping[str, Image]
) -> Image:
    match instruction:
        case "RUN":
            step = image.enter("sh", "-c", argument, online=True)
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{argument}\n{done.stdout}{done.stderr}"
        case "COPY":
            _copy(image, argument.split(), context, images)
        case "WORKDIR":
            image = replace(image, folder=argument)
            (image.root / argument.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "ENV":
            pairs = (pair.split("=", 1) for pair in shlex.split(argument))
            added = {k: v.replace("$PATH", image.environment["PATH"]) for k, v in pairs}
            image = replace(image, environment={**image.environment, **added})
        case "USER":
            image = replace(image, user=argument)
        case "ENTRYPOINT":
            image = replace(image, entrypoint=json.loads(argument))
        case "CMD":
            image = replace(image, command=json.loads(argument))
        case "HEALTHCHECK":
            image = replace(image, healthcheck=json.loads(argument.split(" CMD ")[1]))
        case "VOLUME" | "EXPOSE":
            pass
        case _:
            raise ValueError(f"{instruction} is not known here")
    return image


def _copy(image: Image, words: Sequence[str], context: Path, images: Mapping[str, Image]) -> None:
    *sources, target = [word for word in words if not word.startswith("--from=")]
    into = image.root / (Path(image.folder) / target).as_posix().lstrip("/")
    into.mkdir(parents=True, exist_ok=True)
    origin = context
    if words[0].startswith("--from="):
        origin = images[words[0].removeprefix("--from=")].root
    for source in sources:
        path = origin / source.lstrip("/")
        chosen = _not_ignored(context) if path == context else [path]
        for one in chosen:
            contents = f"{one}/." if one.is_dir() and path != context else str(one)
            subprocess.run(["cp", "-a", contents, str(into)], check=True)


def _not_ignored(context: Path) -> list[Path]:
    """Returns what .dockerignore lets in, which names all of it."""
    lines = (context / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    return [context / line[1:] for line in lines if line.startswith("!")]


def _pip_options() -> dict[str, str]:
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    return {key.rpartition(".")[2]: " ".join(shlex.split(value)) for key, value in pairs}


def _pip_configuration() -> str:
    # An index that this machine does not reach is asked once for each package.
    options = {**_pip_options(), "retries": "0"}
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())


def _paths_of_pip() -> list[str]:
    """Returns the folders and files that pip's configuration names."""
    words = [word for value in _pip_options().values() for word in value.split()]
    paths = {word for word in words if word.startswith("/")}
    # An index links to files beside it.
    paths |= {os.path.dirname(w.removeprefix("file://")) for w in words if w.startswith("file://")}
    return sorted(path for path in paths if os.path.exists(path))
