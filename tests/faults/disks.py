"""A small file system that can be filled and freed: a tmpfs, where this user may mount one."""

from pathlib import Path


class NoSmallDisk(Exception):
    """No small file system can be had here; the text says why. Skip, and print it."""


class SmallDisk:
    """A tmpfs of ``size_bytes`` mounted at ``path``. A context manager: mounted inside, unmounted in any case after.

    End the processes that use it first; what is still open keeps the memory until it is closed.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes

    def mount(self) -> "SmallDisk":
        """Mount it, empty.

        Raises:
            NoSmallDisk: not root, no `mount`, or the kernel says no.
        """
        raise NotImplementedError

    def unmount(self) -> None:
        """Unmount it; what was on it is gone. Nothing happens if it is not mounted."""
        raise NotImplementedError

    @property
    def free_bytes(self) -> int:
        """Return the bytes that can still be written."""
        raise NotImplementedError

    def fill(self, leave_bytes: int = 0) -> int:
        """Take all free space but ``leave_bytes`` with a file of ballast; return the bytes taken.

        Call it again if others have freed space meanwhile.
        """
        raise NotImplementedError

    def free(self) -> None:
        """Give the ballast back."""
        raise NotImplementedError

    def __enter__(self) -> "SmallDisk":
        return self.mount()

    def __exit__(self, *_: object) -> None:
        self.unmount()
