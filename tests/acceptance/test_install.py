from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="installing is for systemd")

_ROOT = Path(__file__).parents[2]


class Target:
    """A machine to install on, as far as files go: DESTDIR.  The slow part, the environment, is a stand-in."""

    prefix = Path("/opt/llm-routerd")

    def __init__(self, root: Path) -> None:
        """Start from an environment that `make install-venv` might have left."""
        self.root = root
        self.environment = self.at(self.prefix)
        (self.environment / "bin").mkdir(parents=True)
        (self.environment / ".installed-by-make").touch()
        (self.environment / "bin" / "llm-routerd").write_text("#!/bin/sh\n")

    def at(self, path: Path | str) -> Path:
        """Return where a path of that machine is on this one."""
        return self.root / str(path).lstrip("/")

    def make(self, target: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a target of the Makefile."""
        settings = {"DESTDIR": str(self.root), **variables}
        # A make above us hands its own variables down in these.
        environ = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL"}}
        return subprocess.run(
            ["make", "--no-print-directory", *options, target, *(f"{key}={value}" for key, value in settings.items())],
            cwd=_ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def files(self) -> set[str]:
        """Return every file and link, by its path on that machine."""
        return {
            "/" + str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a machine without units and configuration."""
    return Target(tmp_path / "root")


def install(target: Target, **variables: str) -> None:
    """Install everything but the environment."""
    run = target.make("install-units", **variables)
    assert run.returncode == 0, run.stderr


def test_everything_goes_where_systemd_and_operators_look(target: Target) -> None:
    """And nowhere else."""
    install(target)
    assert target.files() == {
        "/etc/systemd/system/llm-routerd.service",
        "/etc/systemd/system/llm-routerd@.service",
        "/etc/systemd/system/llm-routerd-gateway.service",
        "/etc/systemd/system/llm-routerd-mcp-bridge.service",
        "/etc/llm-routerd/config.toml",
        "/etc/llm-routerd/llm-routerd.env",
        "/usr/local/bin/llm-routerd",
        "/opt/llm-routerd/.installed-by-make",
        "/opt/llm-routerd/bin/llm-routerd",
        "/opt/llm-routerd/share/llm-routerd/README.md",
        "/opt/llm-routerd/share/llm-routerd/config.toml",
        "/opt/llm-routerd/share/llm-routerd/llm-routerd.env.example",
        "/opt/llm-routerd/share/llm-routerd/users.acl",
    }
    assert target.at("/usr/local/bin/llm-routerd").readlink() == target.prefix / "bin" / "llm-routerd"


def test_units_start_the_command_under_the_prefix_and_not_under_destdir(target: Target) -> None:
    """DESTDIR is where files are staged, and means nothing to the machine that runs them."""
    install(target, PREFIX="/srv/router")
    for name, command in (
        ("llm-routerd.service", "serve"),
        ("llm-routerd@.service", "serve"),
        ("llm-routerd-gateway.service", "gateway"),
        ("llm-routerd-mcp-bridge.service", "mcp-bridge"),
    ):
        unit = target.at("/etc/systemd/system") / name
        assert f"ExecStart=/srv/router/bin/llm-routerd {command}" in unit.read_text()
        assert "@PREFIX@" not in unit.read_text()
        assert str(target.root) not in unit.read_text()


def test_the_environment_file_is_for_root_and_the_configuration_for_all(target: Target) -> None:
    """One may hold keys; the other is read by a user that systemd invents."""
    install(target)
    assert target.at("/etc/llm-routerd/llm-routerd.env").stat().st_mode & 0o777 == 0o600
    assert target.at("/etc/llm-routerd/config.toml").stat().st_mode & 0o777 == 0o644


def test_installing_again_keeps_what_was_edited(target: Target) -> None:
    """An upgrade is not to undo a configuration."""
    install(target)
    edited = [target.at("/etc/llm-routerd") / name for name in ("config.toml", "llm-routerd.env")]
    for file in edited:
        file.write_text("# mine\n")
    unit = target.at("/etc/systemd/system/llm-routerd.service")
    unit.write_text("")
    install(target)
    assert [file.read_text() for file in edited] == ["# mine\n", "# mine\n"]
    assert unit.read_text()


def test_uninstalling_leaves_the_configuration_only(target: Target) -> None:
    """And it can be done twice."""
    install(target)
    for _ in range(2):
        run = target.make("uninstall")
        assert run.returncode == 0, run.stderr
        assert target.files() == {"/etc/llm-routerd/config.toml", "/etc/llm-routerd/llm-routerd.env"}


def test_uninstalling_does_not_touch_what_is_not_ours(target: Target) -> None:
    """A PREFIX that holds other things, and a command that leads elsewhere, stay."""
    install(target)
    (target.environment / ".installed-by-make").unlink()
    command = target.at("/usr/local/bin/llm-routerd")
    command.unlink()
    command.symlink_to("/home/me/llm-routerd")
    run = target.make("uninstall")
    assert run.returncode == 0, run.stderr
    assert (target.environment / "bin" / "llm-routerd").exists()
    assert command.is_symlink()


def test_installing_over_something_else_is_refused(target: Target) -> None:
    """PREFIX=/usr/local would otherwise be cleared for the environment."""
    shutil.rmtree(target.environment)
    precious = target.environment / "precious"
    target.environment.mkdir()
    precious.write_text("x")
    run = target.make("install-venv", PYTHON="true")
    assert run.returncode != 0
    assert "name another PREFIX" in run.stdout
    assert precious.exists()


def test_an_old_python_is_refused_in_one_line(target: Target) -> None:
    """The reason, and what to do about it."""
    run = target.make("install-venv", PYTHON="false")
    assert run.returncode != 0
    assert "needs Python 3.11 or newer" in run.stdout
    assert target.environment.exists()


def test_a_python_in_a_home_directory_is_refused(target: Target, tmp_path: Path) -> None:
    """The unit has ProtectHome=yes, so that it could never start."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ncase $2 in *base_prefix*) exit 1;; esac\n")
    python.chmod(0o755)
    run = target.make("install-venv", PYTHON=str(python))
    assert run.returncode != 0
    assert "lives in a home directory" in run.stdout


def test_compiled_files_name_their_source_where_it_will_be(target: Target) -> None:
    """Under DESTDIR, all of them, whatever pip compiled before; a file that does not compile stops nothing."""
    library = target.environment / "lib" / "python3" / "site-packages"
    library.mkdir(parents=True)
    for name, text in (("sound.py", "def f(): pass\n"), ("newer.py", "no such syntax\n")):
        (library / name).write_text(text)
    compiled = Path(str(py_compile.compile(str(library / "sound.py"))))
    (target.environment / "bin" / "python").symlink_to(sys.executable)
    run = target.make("compile-venv")
    assert run.returncode == 0, run.stderr
    assert str(target.root).encode() not in compiled.read_bytes()
    assert f"{target.prefix}/lib/python3/site-packages/sound.py".encode() in compiled.read_bytes()


def test_compiling_comes_after_everything_that_is_installed(target: Target) -> None:
    """And nothing is compiled twice, which is what takes the time."""
    run = target.make("install-venv", "--dry-run")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    [compiling] = [index for index, line in enumerate(lines) if "compileall" in line]
    installing = [
        index for index, line in enumerate(lines) if f"{target.environment}/bin/pip install" in line and " -" in line
    ]
    into_environment = [index for index in installing if "--target" not in lines[index + 1] + lines[index]]
    assert len(into_environment) == 2
    assert all("--no-compile" in lines[index] for index in into_environment)
    assert max(installing) < compiling
