"""Model revisions. Owns how the served weights are identified in records. Loads nothing."""

import hashlib
from pathlib import Path
from typing import Any

_SAMPLE = 1 << 20


def model_revision(model_config: Any) -> str:
    """Returns the Hub commit of a downloaded model, or a fingerprint of a local folder."""
    folder = Path(model_config.model)
    if folder.is_dir():
        return folder_revision(folder)
    commit = getattr(model_config.hf_config, "_commit_hash", None)
    return str(commit or model_config.revision or "unknown")


def folder_revision(folder: Path) -> str:
    """Returns a fingerprint of a local folder: 16 hex digits of a hash over the names, sizes and
    first MiB of the model's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors", ".jinja", ".bin"):
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE))
    return f"local-{digest.hexdigest()[:16]}"
