"""Adds compiled native kernels to a wheel, which is then for one platform. A build hook of hatchling.

Off by default. HATCH_BUILD_HOOK_ENABLE_CUSTOM=true turns it on; `python -m tools.supply dist` does this.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # type: ignore[import-not-found, unused-ignore]


class NativeKernels(BuildHookInterface):  # type: ignore[misc, unused-ignore]
    """Compiles the kernels for all instruction sets of this architecture, in a temporary folder."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to the files of the wheel. Raises CalledProcessError if the compiler fails."""
        del version
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self.root, "app", "nn", "native", "library.py")
        subprocess.run([sys.executable, str(library), self._folder.name], check=True)
        build_data["force_include"][self._folder.name] = "app/nn/native/prebuilt"
        build_data["pure_python"] = False
        # the kernels are called with ctypes, so they need no version of Python
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the temporary folder."""
        del version, build_data, artifact_path
        self._folder.cleanup()
