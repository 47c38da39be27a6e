"""A real MLflow server on this machine, over sqlite or PostgreSQL, that tests may stop and start again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class MlflowServer:
    """``mlflow server`` with its artifacts behind it, as clients of a hospital see it: one address, nothing else."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.database = database
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.database, "--serve-artifacts", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + 180
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < limit, (self.folder / "server.log").read_text()
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """At once, with its workers."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


@contextmanager
def postgres() -> Iterator[str]:
    """A cluster of its own with a password; gives the address of its database. PostgreSQL does not run as root."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if shutil.which("initdb") is None else []
    program = {name: shutil.which(name, path=str(tools[-1]) if tools else None) for name in ("initdb", "pg_ctl")}
    if None in program.values():
        pytest.skip("PostgreSQL is not installed")
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None and user not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL needs a user other than root")
    # Not in pytest's folder, which it keeps from all users but its own.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        port, password, data = free_port(), Path(folder, "password"), str(Path(folder, "data"))
        password.write_text("s3cret\n")
        for path in (folder, password):
            shutil.chown(path, user or os.geteuid())

        def run(*command: str | None) -> None:
            subprocess.run(list(filter(None, command)), cwd=folder, user=user, check=True, capture_output=True)

        run(program["initdb"], "-D", data, "-U", "mlflow", "--auth", "scram-sha-256", f"--pwfile={password}")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        run(program["pg_ctl"], "-D", data, "-l", str(Path(folder, "log")), "-o", options, "-w", "start")
        try:
            # SQLAlchemy 2.1 takes another driver for an address that names none.
            yield f"postgresql+psycopg2://mlflow:s3cret@127.0.0.1:{port}/postgres"
        finally:
            run(program["pg_ctl"], "-D", data, "-m", "immediate", "-w", "stop")
