"""Locks of files that the system lets go of with the process that has them."""

try:
    import fcntl
except ModuleNotFoundError:  # neither Linux nor macOS
    fcntl = None

HAS_LOCKS = fcntl is not None
"""Whether this system has such locks; its disks may still know none."""


def try_lock(fd: int, is_shared: bool = False) -> bool | None:
    """Locks an open file, or says why it can't, without waiting.

    Args:
      fd: the file's descriptor, whose end is the lock's.
      is_shared: locks against those alone that don't share.

    Returns:
      True: locked; False: another process has it; None: the system, or the disk, knows no locks.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     try_lock(file.fileno()) in (True, None)
    True
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
