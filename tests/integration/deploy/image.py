"""Builds a Dockerfile without Docker. Each stage is an overlay over the root folder of this machine. RUN steps run in
the overlay with chroot, and COPY copies the files that .dockerignore does not exclude.

This shows that the steps work, which files result, and which user owns them. It does not test the base image: Debian
and Python of this machine replace it. Needs root, overlayfs and loop devices (Linux).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

DISK_BYTES = 12 << 30  # sparse
PASSED_ON = ("PIP_", "SSL_", "REQUESTS_", "CURL_", "HTTP_", "HTTPS_", "http_", "https_", "NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True)
class Step:
    word: str  # RUN, COPY, ...
    rest: str
    flags: tuple[str, ...] = ()


@dataclass(slots=True)
class Stage:
    name: str
    base: str
    steps: list[Step] = field(default_factory=list)


def read(dockerfile: Path) -> tuple[dict[str, str], list[Stage]]:
    """Return the global ARGs and the stages, in order."""
    text = re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"))
    text = re.sub(r"\\\n\s*", " ", text)
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "FROM":
            base, _, name = re.sub(r"(?i)\s+AS\s+", " ", rest).partition(" ")
            stages.append(Stage(name or str(len(stages)), base))
        elif not stages:
            name, _, default = rest.partition("=")
            arguments[name] = default
        else:
            flags = []
            while rest.startswith("--"):
                flag, _, rest = rest.partition(" ")
                flags.append(flag)
                rest = rest.strip()
            stages[-1].steps.append(Step(word, rest, tuple(flags)))
    return arguments, stages


def context(root: Path) -> list[str]:
    """Return the build context: all files below root that .dockerignore does not exclude. Later lines win."""
    rules = []
    for raw in (root / ".dockerignore").read_text(encoding="utf-8").splitlines():
        line = raw.strip()
        if line and not line.startswith("#"):
            rules.append((line.startswith("!"), _pattern(line.removeprefix("!").strip("/"))))
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.startswith((".git/", ".venv/")) or path.is_dir():
            continue
        parents = [name, *(str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")]
        kept = True
        for keeps, pattern in rules:
            if any(pattern.fullmatch(part) for part in parents):
                kept = keeps
        if kept:
            found.append(name)
    return found


def _pattern(glob: str) -> re.Pattern[str]:
    """Return a regular expression for a pattern of Go's filepath.Match, in which ** is any number of folders."""
    parts = []
    for token in re.findall(r"\*\*/?|\*|\?|\[[^\]]*\]|[^*?\[]+", glob):
        if token.startswith("**"):
            parts.append("(?:.*/)?" if token.endswith("/") else ".*")
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(token, token if token.startswith("[") else re.escape(token)))
    return re.compile("".join(parts))


class Image:
    """The result of building one target of a Dockerfile. `run` executes a command in this result, as the image's user.

    python: the installation folder of a Python with the version of the base image; it becomes /usr/local.
    """

    def __init__(self, source: Path, work: Path, target: str, python: Path) -> None:
        self._source = source
        self._work = work
        self._mounts: list[Path] = []
        # The layers use a separate disk image: layers of an overlay can't be inside each other, and "/" is the lowest
        # layer.
        disk = work.with_suffix(".disk")
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        work.mkdir(parents=True)
        subprocess.run(["mount", "-o", "loop", disk, work], check=True)
        self._mounts.append(work)
        try:
            self._make(target, python)
        except BaseException:
            self.close()
            raise

    def _make(self, target: str, python: Path) -> None:
        source = self._source
        arguments, stages = read(source / "Dockerfile")
        self._globals = arguments
        self._stages = {stage.name: stage for stage in stages}
        self._python = python
        self._built: dict[str, tuple[Path, ...]] = {}  # stage -> its layers, newest first
        self.environment: dict[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"}
        self.user = "0:0"
        self.workdir = "/"
        self.words: dict[str, str] = {}  # the arguments of ENTRYPOINT, CMD, HEALTHCHECK and EXPOSE, as written
        self._state: dict[str, tuple[dict[str, str], str, str, dict[str, str]]] = {}
        self._build(target)
        self.root = self._mount(target, self._built[target])
        self._restore(target)

    def close(self) -> None:
        while self._mounts:
            subprocess.run(["umount", "--lazy", self._mounts.pop()], check=False)
        self._work.with_suffix(".disk").unlink()
        self._work.rmdir()

    def command(self, *arguments: str, user: str | None = None) -> list[str]:
        user_id, _, group_id = (user or self.user).partition(":")
        inside = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(arguments)}"
        chroot = ["chroot", f"--userspec={user_id}:{group_id or user_id}", "--groups=", str(self.root)]
        return [*chroot, "/bin/sh", "-c", inside]

    def run(self, *arguments: str, user: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, user=user),
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    # ---- building

    def _build(self, name: str) -> None:
        if name in self._built:
            return
        stage = self._stages[name]
        base = _filled(stage.base, self._globals)
        if base in self._stages:
            self._build(base)
            below = self._built[base]
            self._restore(base)
        else:
            below = (self._base_layer(),)
            self.environment = {"PATH": self.environment["PATH"]}
            self.user, self.workdir, self.words = "0:0", "/", {}
        for step in stage.steps:
            for flag in step.flags:
                if flag.startswith("--from="):
                    kept = dict(self.environment), self.user, self.workdir, dict(self.words)
                    self._build(flag.removeprefix("--from="))
                    self.environment, self.user, self.workdir, self.words = kept
        layer = self._work / name / "layer"
        layer.mkdir(parents=True)
        self._built[name] = (layer, *below)
        root = self._mount(name, self._built[name])
        if base not in self._stages:
            subprocess.run(["chroot", str(root), "ldconfig"], check=True)  # /usr/local/lib may hold libpython
        arguments: dict[str, str] = {}
        for step in stage.steps:
            self._do(step, root, arguments)
        self._state[name] = dict(self.environment), self.user, self.workdir, dict(self.words)
        self._unmount(root)

    def _restore(self, name: str) -> None:
        environment, self.user, self.workdir, words = self._state[name]
        self.environment, self.words = dict(environment), dict(words)

    def _do(self, step: Step, root: Path, arguments: dict[str, str]) -> None:
        known = {**arguments, **self.environment}
        match step.word:
            case "ARG":
                name, _, default = step.rest.partition("=")
                arguments[name] = os.environ.get(f"IMAGE_{name}", default)
            case "ENV":
                for pair in shlex.split(step.rest):
                    name, _, value = pair.partition("=")
                    self.environment[name] = _filled(value, known)
            case "WORKDIR":
                self.workdir = step.rest
                (root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = step.rest
            case "COPY":
                self._copy(step, root)
            case "RUN":
                self.root = root
                outside = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
                script = f"cd {shlex.quote(self.workdir)}\n{step.rest}"
                subprocess.run(
                    ["chroot", str(root), "/bin/sh", "-ec", script],
                    env={"HOME": "/root", "PIP_NO_CACHE_DIR": "1", **outside, **known},
                    check=True,
                    timeout=550,
                )
            case "ENTRYPOINT" | "CMD" | "HEALTHCHECK" | "EXPOSE":
                self.words[step.word] = step.rest
            case other:
                raise NotImplementedError(other)

    def _copy(self, step: Step, root: Path) -> None:
        *sources, target = shlex.split(step.rest)
        into = root / (target if target.startswith("/") else f"{self.workdir}/{target}").lstrip("/")
        for flag in step.flags:
            if flag.startswith("--from="):
                name = flag.removeprefix("--from=")
                other = self._mount(name, self._built[name])
                shutil.copytree(other / sources[0].lstrip("/"), into, symlinks=True, dirs_exist_ok=True)
                self._unmount(other)
                return
        allowed = context(self._source)
        for source in sources:
            for name in allowed:
                if name == source or name.startswith(f"{source}/"):
                    below = Path(name).name if name == source else name.removeprefix(f"{source}/")
                    file = into / below
                    file.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self._source / name, file)

    def _base_layer(self) -> Path:
        """Install Python in /usr/local, as in the base image."""
        layer = self._work / "python"
        if not layer.exists():
            shutil.copytree(
                self._python,
                layer / "usr/local",
                symlinks=True,
                ignore=shutil.ignore_patterns("site-packages", "test", "*.a", "__pycache__"),
            )
            site = next((layer / "usr/local/lib").glob("python3.*")) / "site-packages"
            site.mkdir()
            (layer / "usr/local/bin/python").unlink(missing_ok=True)
            (layer / "usr/local/bin/python").symlink_to("python3")
            (layer / "tmp").mkdir(mode=0o1777)
            (layer / "tmp").chmod(0o1777)
            (layer / "usr/sbin").mkdir()
            # packages start no services in this root folder
            (layer / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        return layer

    def _mount(self, name: str, layers: tuple[Path, ...]) -> Path:
        """Mount the file system of a stage: its own layer is writable, the layers below are read-only."""
        place = self._work / name
        root, spare = place / "root", place / "spare"
        root.mkdir(parents=True, exist_ok=True)
        spare.mkdir(exist_ok=True)
        below = ":".join(str(layer) for layer in (*layers[1:], "/"))
        options = f"lowerdir={below},upperdir={layers[0]},workdir={spare}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
        self._mounts.append(root)
        for inside in ("proc", "dev"):
            subprocess.run(["mount", "--rbind", f"/{inside}", root / inside], check=True)
            subprocess.run(["mount", "--make-rslave", root / inside], check=True)
            self._mounts.append(root / inside)
        return root

    def _unmount(self, root: Path) -> None:
        for mount in (root / "dev", root / "proc", root):
            subprocess.run(["umount", "--lazy", mount], check=True)
            self._mounts.remove(mount)


def words(written: str) -> list[str]:
    """Return the arguments of an instruction in exec form (a JSON list)."""
    found: list[str] = json.loads(written[written.index("[") :])
    return found


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)
