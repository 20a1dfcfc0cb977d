"""Addresses of hosts and ports, as texts."""

import re

from adabatch_jax.system.errors import UsageError

DEFAULT_PORT = 8482  # JAX's on Cloud TPU


def host_and_port(address: str, name: str = "--coordinator") -> tuple[str, int]:
    """Reads "host:port", with an IPv6 address in brackets; `name` is what errors call it.

    >>> host_and_port("n1:1234"), host_and_port("[::1]:80")
    (('n1', 1234), ('::1', 80))
    >>> host_and_port("n1")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: --coordinator: must be HOST:PORT, such as n1:8482, ...
    """
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:\s]+)):(.*)", address.strip())
    if match is None:
        raise UsageError(f"{name}: must be HOST:PORT, such as n1:{DEFAULT_PORT}, got {address!r}.")
    return match[1] or match[2], port_number(match[3], name)


def joined_address(host: str, port: int) -> str:
    """The text that `host_and_port` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_number(text: str | int, name: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", str(text)) or not 1 <= int(text) <= 65535:
        raise UsageError(f"{name}: a port must be a number from 1 to 65535, got {text!r}.")
    return int(text)
