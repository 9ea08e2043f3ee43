"""A docker-registry behind nginx as hosted registries are built: whoever asks for a blob is sent on to storage, by a
link that is signed and good for two seconds. Storage is nginx over the registry's own files; it refuses links that are
too old, and requests that bring a password."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from blobtee.registry import Credential
from blobtee.testing.http import Headers, Request, Response, Server
from tests.integration.servers import DockerRegistry, free_port, running_registry, settle, tool

LIFETIME = 2
"""Seconds that a link is good for; nginx counts whole ones."""
OUTLIVED = LIFETIME + 1.2
"""Seconds after which no link is good any more."""

USER = Credential("ann", "s3cr3t", source="a test")
_SECRET = "known to both"
_CONFIG = """\
{user}
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  log_format said '$server_port $request_method $uri $status $body_bytes_sent';
  access_log {folder}/access.log said;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{front};
    auth_basic registry;
    auth_basic_user_file {folder}/passwords;
    proxy_set_header Host $http_host;
    proxy_set_header Authorization "";
    proxy_http_version 1.1;
    proxy_request_buffering off;
    location / {{
      proxy_pass http://127.0.0.1:{registry};
    }}
    location ~ ^/v2/.+/blobs/sha256:[0-9a-f]+$ {{
      error_page 418 = @signed;
      if ($request_method = GET) {{ return 418; }}
      proxy_pass http://127.0.0.1:{registry};
    }}
    location @signed {{
      proxy_pass http://127.0.0.1:{signer};
    }}
  }}
  server {{
    listen 127.0.0.1:{storage};
    location ~ ^/stored/(..)(.*)$ {{
      secure_link $arg_md5,$arg_expires;
      secure_link_md5 "$secure_link_expires$uri {secret}";
      if ($http_authorization) {{ return 400; }}
      if ($secure_link = "") {{ return 403; }}
      if ($secure_link = "0") {{ return {expired}; }}
      default_type application/octet-stream;
      alias {blobs}/$1/$1$2/data;
    }}
  }}
}}
"""


class Line(NamedTuple):
    """A request as nginx saw it; `by` is `front` or `storage`."""

    by: str
    method: str
    path: str
    status: int
    nbytes: int


class Known:
    """Credentials: the same for everybody."""

    def get(self, host: str, repository: str) -> Credential:
        return USER


@dataclass
class SignedRegistry:
    """`host` is what goes into references; `storage_host` what links lead to, nginx itself unless something is put in
    between."""

    folder: Path
    registry: DockerRegistry
    expired: int
    front: int = field(default_factory=free_port)
    storage: int = field(default_factory=free_port)
    storage_host: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.storage_host = f"127.0.0.1:{self.storage}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.front}"

    def link(self, hexadecimal: str) -> str:
        """Where the blob can be had for two seconds."""
        uri = f"/stored/{hexadecimal}"
        expires = int(time.time()) + LIFETIME
        signed = hashlib.md5(f"{expires}{uri} {_SECRET}".encode()).digest()
        md5 = base64.urlsafe_b64encode(signed).decode().rstrip("=")
        return f"http://{self.storage_host}{uri}?md5={md5}&expires={expires}"

    def start(self, signer: int) -> None:
        config = self.folder / "nginx.conf"
        blobs = self.registry.folder / "root/docker/registry/v2/blobs/sha256"
        config.write_text(
            _CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                folder=self.folder,
                front=self.front,
                storage=self.storage,
                registry=self.registry.port,
                signer=signer,
                secret=_SECRET,
                expired=self.expired,
                blobs=blobs,
            )
        )
        (self.folder / "passwords").write_text(f"{USER.username}:{{PLAIN}}{USER.password}\n")
        command = [tool("nginx"), "-p", str(self.folder), "-c", str(config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not _listens(self.front):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"nginx did not start:\n{(self.folder / 'error.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def requests(self) -> list[Line]:
        """Those that have been answered so far."""
        if self._process is not None:
            settle(self._process.pid)
        ports = {str(self.front): "front", str(self.storage): "storage"}
        found = re.findall(r"^(\d+) (\S+) (\S+) (\d+) (\d+)$", (self.folder / "access.log").read_text(), re.MULTILINE)
        return [
            Line(ports[port], method, path, int(status), int(nbytes)) for port, method, path, status, nbytes in found
        ]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def signed_registry(folder: Path, expired: int = 403) -> Iterator[SignedRegistry]:
    """All three servers. `expired`: what storage answers to a link that is too old."""
    tool("nginx")

    def redirect(request: Request) -> Response:
        return Response(307, Headers({"Location": signed.link(request.path.rpartition(":")[2])}))

    with running_registry(folder / "registry") as registry:
        signed = SignedRegistry(folder, registry, expired)
        signer = Server(redirect, lambda request, status, received: lambda nbytes: None)
        signer.start()
        try:
            signed.start(signer.port)
            yield signed
        finally:
            signed.stop()
            signer.stop()
