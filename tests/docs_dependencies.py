"""Makes docs/dependencies.md from pyproject.toml and the pinned files: `make docs`. Owns why each
direct dependency is there. Licences come from the installed packages' metadata.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/dependencies.md"
PINS = ("cpu.txt", "smollm2.txt", "dev.txt")

REASONS = {
    "accelerate": "training on several GPUs; the Hugging Face Trainer needs it",
    "aiosqlite": "SQLite without blocking the event loop",
    "alembic": "migrations of the schema",
    "asyncpg": "PostgreSQL without blocking the event loop",
    "datasketch": "finds near duplicates among flags (MinHash)",
    "fastapi": "our routes, in vLLM's own application",
    "filelock": "one process at a time converts a model, trains, or writes a cache",
    "google-re2": "finds an operator's patterns in linear time",
    "httpx": "the refine loop's client of the server",
    "itsdangerous": "signed sessions of the console",
    "jinja2": "the console's pages",
    "jsonschema": "checks the arguments of tool calls",
    "matplotlib": "the plots of reports and calibrations",
    "openai": "types of moderated responses; a judge of your own by URL; `setback demo`'s client",
    "opentelemetry-api": "spans of the guard's work",
    "opentelemetry-exporter-otlp": "sends spans to a collector",
    "opentelemetry-sdk": "sends spans to a collector",
    "pandas": "vLLM's benchmark client, which `setback bench` runs, needs it",
    "peft": "LoRA training, and which adapters are valid",
    "phonenumbers": "finds telephone numbers to redact",
    "prometheus-client": "metrics",
    "psutil": "how much memory the machine has; the processes of a server",
    "py3langid": "tells which language a text is in",
    "pydantic": "requests, settings and files with their errors",
    "pydantic-settings": "settings from options, variables and a file",
    "python-multipart": "the console's forms",
    "python-stdnum": "checks card and account numbers to redact",
    "safetensors": "reads adapters",
    "sqlalchemy": "tables and queries for SQLite and PostgreSQL",
    "structlog": "logs in JSON",
    "tokenizers": "the practice model's tokenizer",
    "torch": "training and the CPU backend's fixes",
    "transformers": "training, tokenizers and chat templates",
    "typer": "the command line",
    "uvicorn": "runs the application",
}
STATED_IN_FILES = {
    "axe-playwright-python": "MIT",
    "oss-harmony": "Apache-2.0",
    "promql-parser": "MIT",
    "setuptools": "MIT",
}
"""Licences of packages whose metadata names none, from their licence files."""

_SPDX = {
    "0BSD": "0BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "Intel's own (redistributable)",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
_UNSPECIFIC = frozenset({"OSI Approved", "DFSG approved"})

_TEXT = """# Dependencies and licences

`make docs` writes this page from `pyproject.toml`, the pinned files in `requirements/` and the
metadata of the installed packages. Do not edit it. `tests/test_docs.py` compares it.

Setback is under Apache-2.0. The files in `requirements/` pin exactly what Setback, vLLM's CPU build
and the tests need, and what these need in turn. On a GPU, vLLM brings its own (`pip install
setback[gpu]`).

## What Setback itself uses

Beside vLLM, which serves. What is written by hand is what the project is for: the guard, the
critique, the refine loop and its gate.

| package | what for | licence |
|---|---|---|
{direct}

## Everything that is installed

| licence | packages |
|---|---|
{all}

`pycountry` and `python-stdnum` are under the LGPL. They are used as they are published, as separate
packages.
"""


def page() -> str:
    """The whole page."""
    direct = [f"| {name} | {reason} | {licence(name)} |" for name, reason in REASONS.items()]
    by_licence: dict[str, list[str]] = {}
    for name in pinned():
        by_licence.setdefault(licence(name), []).append(name)
    rows = sorted(by_licence.items(), key=lambda item: (-len(item[1]), item[0]))
    listed = [f"| {licence_} | {', '.join(sorted(names))} |" for licence_, names in rows]
    return _TEXT.format(direct="\n".join(direct), all="\n".join(listed))


def direct_dependencies() -> list[str]:
    """The names in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [_name(requirement) for requirement in project["dependencies"]]


def pinned() -> Iterator[str]:
    """The names in the pinned files."""
    for file in PINS:
        for line in (ROOT / "requirements" / file).read_text("utf-8").splitlines():
            if "==" in line and not line.startswith("#"):
                yield _name(line)


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def licence(name: str) -> str:
    """A package's licence, as an SPDX expression where its metadata allows it."""
    fields: Any = metadata(name)
    if expression := fields.get("License-Expression"):
        return str(expression)
    classifiers = [
        classifier.rpartition("::")[2].strip()
        for classifier in fields.get_all("Classifier") or []
        if classifier.startswith("License ::")
    ]
    named = [
        _SPDX.get(classifier, classifier)
        for classifier in classifiers
        if classifier not in _UNSPECIFIC
    ]
    if named:
        return " and ".join(named)
    stated = (fields.get("License") or "").strip().split("\n")[0]
    return _SPDX.get(stated, stated) or STATED_IN_FILES[name]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
