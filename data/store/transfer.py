"""The bytes of a remote file: over HTTP, from a command, or through fsspec and the package of a storage service.

an address  ->  chunks  ->  bytes, or Refused if trying again is pointless, or an error that may pass
"""

from __future__ import annotations

import base64
import logging
import netrc
import os
import select
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from entroloop.data.errors import reason

CHUNK = 2**20


class Refused(Exception):  # noqa: N818 - internal
    """The server answered that the file does not exist or may not be read, so trying again is pointless."""


def chunks(address: str, timeout: float) -> Iterator[bytes]:
    """The bytes of a file. Ends with an error when no byte arrives for `timeout` seconds.

    address  `https://…`, `pipe:COMMAND`, or an address that fsspec or webdataset reads

    Raises Refused, and OSError or HTTPException for errors that may pass.
    """
    if address.startswith("pipe:"):
        return _from_command(address.removeprefix("pipe:"), timeout)
    if address.startswith(("http://", "https://")):
        return _from_web(address, timeout)
    return _from_library(address, timeout)


def _from_web(address: str, timeout: float) -> Iterator[bytes]:
    try:
        request = urllib.request.Request(address)
        if login := _login(urllib.parse.urlsplit(address).hostname or ""):
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            missing = int(answer.headers.get("Content-Length", 0))
            while chunk := answer.read(CHUNK):
                missing -= len(chunk)
                yield chunk
            if missing > 0:
                raise OSError(f"the connection ended {missing} bytes early")
    except urllib.error.HTTPError as error:
        if error.code in (408, 425, 429) or error.code >= 500:
            raise
        raise Refused(f"the server answered {error.code} {error.reason}") from error
    except ValueError as error:
        raise Refused(str(error)) from error


def _login(host: str) -> bytes:
    """`name:password` of the host in the file that $NETRC names, or in ~/.netrc; empty if there is none."""
    file = os.environ.get("NETRC")
    try:
        found = netrc.netrc(file).authenticators(host)
    except FileNotFoundError:
        return b""
    except (OSError, netrc.NetrcParseError) as error:  # the text of a parse error may contain a password
        said = error.strerror if isinstance(error, OSError) else f"line {error.lineno} is wrong"
        raise Refused(f"{file or '~/.netrc'} cannot be read ({said})") from error
    return f"{found[0]}:{found[2]}".encode() if found else b""


def _from_command(command: str, timeout: float) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        try:
            while True:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise OSError(f"no byte in {timeout:g} s")
                chunk = os.read(descriptor, CHUNK)
                if not chunk:
                    break
                yield chunk
            if process.wait() != 0:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise OSError(f"exit status {process.returncode}{': ' + said[-1] if said else ''}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _from_library(address: str, timeout: float) -> Iterator[bytes]:
    """Reads through fsspec if it and its package for the scheme are installed, else through webdataset's commands."""
    try:
        with _opened(address, timeout) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except Refused:
        raise
    except FileNotFoundError as error:
        raise Refused("cannot be read (no such bucket or file)") from error
    except Exception as error:  # each library has its own errors, and few of them are OSErrors
        said = f"{type(error).__name__}: {reason(error)}"
        if _is_final(error):
            raise Refused(f"cannot be read ({said}): check the address and the credentials") from error
        raise OSError(said) from error


def _is_final(error: Exception) -> bool:
    """Whether a library's error is about the address or the credentials, so that trying again is pointless."""
    code = str(getattr(error, "code", getattr(error, "status", "")))
    return (
        isinstance(error, PermissionError | ValueError)
        or (code.startswith("4") and code not in ("408", "425", "429"))
        or "Credential" in type(error).__name__
        or str(error).startswith("Forbidden")  # gcsfs raises a plain OSError
    )


def _opened(address: str, timeout: float) -> Any:
    scheme = address.split("://")[0]
    # gcsfs would ask a second service about each bucket. Both packages log tracebacks of errors that are told here.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in ("fsspec", "gcsfs", "s3fs", "aiobotocore", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:  # fsspec itself, or what it needs for this scheme, is not installed
        import webdataset.gopen

        if scheme in sys.modules["webdataset.gopen"].gopen_schemes:
            return webdataset.gopen(address)
        raise Refused(f"reading {scheme}: needs fsspec: pip install 'entroloop[remote]' ({reason(error)})") from error
    return fsspec.open(address, "rb", **_options(scheme, timeout))


def _options(scheme: str, timeout: float) -> dict[str, Any]:
    """Options of fsspec's class for the scheme: the time without a byte, and no cache of listings that may be old."""
    if scheme in ("s3", "s3a"):
        limits = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 1}}
        return {"config_kwargs": limits, "use_listings_cache": False}
    if scheme in ("gs", "gcs"):
        import aiohttp

        limit = aiohttp.ClientTimeout(sock_connect=timeout, sock_read=timeout)
        return {"requests_timeout": limit, "use_listings_cache": False}
    return {}
