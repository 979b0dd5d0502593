"""The child process of `signing.read_manifest`: reads a file from standard input and writes a JSON object.

sys.argv[1]: the media type of the file. The process has limits of memory and CPU time, and it uses no network.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from typing import Any

from app.audio.signing import SETTINGS

_MEMORY_BYTES = 2 << 30
_CPU_S = 10
_MAX_CHARS = 200  # a longer text from the file is cut to this length
_ALGORITHMIC = ("trainedAlgorithmicMedia", "algorithmicMedia", "compositeWithTrainedAlgorithmicMedia")


def main() -> None:
    """Read one file from standard input, and write the result to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    import c2pa  # noqa: PLC0415 - imported after the limits are set

    data = sys.stdin.buffer.read()
    try:
        with c2pa.Reader(
            sys.argv[1], io.BytesIO(data), context=c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
        ) as reader:
            found: dict[str, Any] | None = _shown(json.loads(reader.json()))
    except c2pa.C2paError.ManifestNotFound:
        found = None
    except c2pa.C2paError as error:
        found = _result("invalid", {}, problems=[str(error)[:_MAX_CHARS]])
    json.dump(found, sys.stdout)


def _shown(store: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `signing.read_manifest` for a manifest store."""
    manifest = store["manifests"][store["active_manifest"]]
    failures = store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    problems = [f"{each.get('code')}: {each.get('explanation')}"[:_MAX_CHARS] for each in failures[:10]]
    return _result("invalid" if problems or store.get("validation_state") == "Invalid" else "valid", manifest, problems)


def _result(state: str, manifest: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    signature = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{}]
    name = " ".join(str(generators[0].get(key) or "") for key in ("name", "version")).strip()
    actions = [
        action
        for assertion in manifest.get("assertions", ())
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", ())
    ]
    kinds = [str(action.get("digitalSourceType", "")).rpartition("/")[2] for action in actions]
    return {
        "state": state,
        "issuer": _text(signature.get("issuer")),
        "signer": _text(signature.get("common_name")),
        "generator": _text(name or manifest.get("claim_generator")),
        "synthetic": any(kind in _ALGORITHMIC for kind in kinds),
        "problems": problems,
    }


def _text(value: object) -> str | None:
    return str(value)[:_MAX_CHARS] if value else None


if __name__ == "__main__":
    main()
