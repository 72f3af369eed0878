"""Which packages a local run gets: those of the index that the user names for it, with the real uv."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launcher.jobs.environment import find_uv, misleading, uv_run
from launcher.jobs.local import LocalBackend
from tests.unit.sample import request

WHEEL = "launch_planted-1-py3-none-any.whl"
BODY = """# /// script
# requires-python = ">=3.11"
# dependencies = ["launch-planted"]
# ///
import launch_planted
print(launch_planted.WHERE)
"""


@contextmanager
def index(where: str) -> Iterator[str]:
    """The address of a package index with one package, which says where it is from."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("launch_planted.py", f"WHERE = {where!r}\n")
        about = "launch_planted-1.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: launch-planted\nVersion: 1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*wheel.namelist(), f"{about}/RECORD")))
    page = f'<!DOCTYPE html><a href="/{WHEEL}">{WHEEL}</a>'.encode()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = packed.getvalue() if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("content-type", "text/html" if body is page else "application/octet-stream")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/simple"
    server.shutdown()
    server.server_close()


Plant = Callable[[Path, str, pytest.MonkeyPatch], object]


def write(name: str, text: str) -> Plant:
    def plant(folder: Path, url: str, _: pytest.MonkeyPatch) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(url=url))

    return plant


def variable(name: str) -> Plant:
    return lambda folder, url, monkeypatch: monkeypatch.setenv(name, url)


def config_file(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write("any.toml", '[[index]]\nurl = "{url}"\n')(folder, url, monkeypatch)
    monkeypatch.setenv("UV_CONFIG_FILE", str(folder / "any.toml"))


PLANTS: dict[str, Plant] = {
    "uv.toml": write("uv.toml", '[[index]]\nurl = "{url}"\n'),
    "pyproject.toml": write("pyproject.toml", '[[tool.uv.index]]\nname = "planted"\nurl = "{url}"\n'),
    "config of the user": write("config/uv/uv.toml", '[[index]]\nurl = "{url}"\n'),
    "UV_CONFIG_FILE": config_file,
    "UV_INDEX": variable("UV_INDEX"),
    "UV_EXTRA_INDEX_URL": variable("UV_EXTRA_INDEX_URL"),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_that_lies_around_says_where_packages_are_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(home)
    with index("planted") as planted, index("chosen") as chosen:
        PLANTS[plant](tmp_path, planted, monkeypatch)
        (home / "script.py").write_text(BODY)
        plain = [find_uv(), "run", "--quiet", "--python", sys.executable, "script.py"]
        fooled = subprocess.run(
            plain, env=os.environ | {"UV_DEFAULT_INDEX": chosen}, capture_output=True, text=True, check=True
        )
        assert fooled.stdout == "planted\n"
        # What is asked for by name is the user's own choice.
        backend = LocalBackend()
        job = backend.submit(request("", script=BODY, env={"UV_DEFAULT_INDEX": chosen}))
        assert list(backend.logs(job.id, follow=True))[-1] == "chosen"


def test_what_a_script_runs_with_uv_is_led_by_no_folder_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the one that makes copies gets its cmake."""
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    inner = tmp_path / "home" / "inner.py"
    inner.parent.mkdir()
    inner.write_text(BODY)
    command = [find_uv(), "run", "--quiet", "--python", sys.executable, str(inner)]
    with index("planted") as planted, index("chosen") as chosen:
        PLANTS["uv.toml"](tmp_path, planted, monkeypatch)
        backend = LocalBackend()
        job = backend.submit(
            request(f"import subprocess; subprocess.run({command!r})", env={"UV_DEFAULT_INDEX": chosen})
        )
        assert list(backend.logs(job.id, follow=True))[-1] == "chosen"


def test_what_uv_and_pip_are_told_by_the_shell_is_kept_only_where_it_chooses_no_package() -> None:
    chooses = {
        "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CONFIG_FILE", "UV_PYTHON", "UV_FIND_LINKS", "UV_TORCH_BACKEND",
        "UV_INSECURE_HOST", "UV_INDEX_MINE_PASSWORD", "UV_OVERRIDE", "UV_ANY_THAT_COMES", "PIP_INDEX_URL",
        "PIP_CONFIG_FILE", "PYTHONPATH", "VIRTUAL_ENV",
    }  # fmt: skip
    harmless = {"UV_CACHE_DIR", "UV_OFFLINE", "UV_HTTP_TIMEOUT", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "PATH"}
    assert misleading(chooses | harmless) == chooses
    assert "--no-config" in uv_run()
