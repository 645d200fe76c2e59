"""Programs that start at once: forks of a process that has imported what takes long.

A program gets a ``__main__``, arguments, an environment and files of its own, as if Python had been started for it; only
:data:`sys.modules` holds what the process had imported. What a module says or does when it is imported, test in a fresh Python.
Where processes cannot be forked, a fresh one is started.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

START_S = 600.0  # for a busy machine


class Program:
    """A running program.

    Parameters
    ----------
    line
        To what runs it; says the code it ends with.
    pid
        Number of its process.
    """

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.pid = pid
        self._line = line
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Code it ends with; that of a signal is negative."""
        if self._code is None:
            self._line.settimeout(timeout)
            try:
                self._code = int(self._line.recv(64))
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                raise
            self._line.close()
        return self._code

    def poll(self) -> int | None:
        """Code it ended with; ``None`` while it runs."""
        with contextlib.suppress(BlockingIOError):
            if self._code is None:
                self._line.setblocking(False)
                self._code = int(self._line.recv(64))
                self._line.close()
        return self._code

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Fresh(subprocess.Popen[bytes]):
    """A program that Python was started for."""

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        super().kill()
        self.wait()


class Warm:
    """Starts programs in forks of one process.

    Parameters
    ----------
    preload
        Code that this process runs at first.
    address
        Of such a process that runs already.
    """

    can_fork = sys.platform == "linux"
    file = __file__

    def __init__(self, preload: str = "", address: str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.address = address or f"{self._folder.name}/socket"
        self._preload, self._server = preload, None
        self._shared = address is not None

    def start(
        self,
        program: str | Path,
        *arguments: object,
        stdout: int | None = None,
        stderr: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Program | Fresh:
        """Start code, or a script, with arguments; the outputs are numbers of open files, or nowhere."""
        if not self.can_fork:
            command = [
                sys.executable,
                "-W",
                "ignore",
                *([] if isinstance(program, Path) else ["-c"]),
                program,
                *arguments,
            ]
            files = {"stdout": stdout or subprocess.DEVNULL, "stderr": stderr or subprocess.DEVNULL}
            return Fresh([str(part) for part in command], env=environment, **files)
        self._serve()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.connect(self.address)
        job = {
            "program": str(program),
            "script": isinstance(program, Path),
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(Path.cwd()),
        }
        with Path(os.devnull).open("wb") as nowhere:
            outputs = [nowhere.fileno() if output is None else output for output in (stdout, stderr)]
            socket.send_fds(line, [json.dumps(job).encode()], outputs)
            pid = int(line.recv(64))
        return Program(line, pid)

    def run(
        self, program: str | Path, *arguments: object, timeout: float | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run code, or a script, with arguments, and return what it wrote and the code it ended with."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            files = {"stdout": stdout.fileno(), "stderr": stderr.fileno()}
            code = self.start(program, *arguments, **files, **options).wait(timeout)
            said = []
            for file in (stdout, stderr):
                file.seek(0)
                said.append(file.read().decode())
        return subprocess.CompletedProcess([str(program)], code, *said)

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._folder.cleanup()

    def _serve(self) -> None:
        """Start the process that forks, at the first program."""
        if self._server is not None or self._shared:
            return
        command = [sys.executable, "-W", "ignore", __file__, self.address, self._preload]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while not Path(self.address).exists():
            if self._server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("The process that forks did not start.")
            time.sleep(0.02)


def serve(address: str) -> None:
    """Fork a process for each program that is asked for, which forks the program and waits for it."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        server.settimeout(5)
        Path(f"{address}.new").rename(address)  # whoever sees it is answered
        while os.getppid() == parent:  # which may have been killed
            with contextlib.suppress(TimeoutError):
                line, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    follow(line)
                line.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def follow(line: socket.socket) -> NoReturn:
    """Run a program in a fork of this process, and tell its number and the code it ends with."""
    line.setblocking(True)
    message, outputs, *_ = socket.recv_fds(line, 1 << 20, 2)
    pid = os.fork()
    if pid == 0:
        line.close()
        become(json.loads(message), outputs)
    for output in outputs:
        os.close(output)
    line.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # whoever asked does not listen any more
        line.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def become(job: dict[str, Any], outputs: list[int]) -> NoReturn:
    """Be the program."""
    for output, number in zip(outputs, (1, 2), strict=True):
        os.dup2(output, number)
        os.close(output)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    path, script = job["program"], job["script"]
    if not script:
        file, path = tempfile.mkstemp(suffix=".py")
        os.write(file, job["program"].encode())
        os.close(file)
    sys.path[0] = str(Path(path).parent) if script else ""
    sys.argv = [path, *job["arguments"]]
    code = run(path)
    if not script:
        Path(path).unlink()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all that was imported down takes a second


def run(path: str) -> int:
    """Run a file as Python does, and return the code it ends with."""
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001  # as Python ends
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    exec(sys.argv[2], {"__name__": "preload"})
    gc.freeze()  # forks share what is there
    serve(sys.argv[1])
