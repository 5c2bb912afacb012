"""A small file system that can be filled and freed: a tmpfs, where this user may mount one."""

import os
import shutil
import subprocess
from pathlib import Path

_BALLAST = ".ballast"
_BLOCK_BYTES = 1 << 20
_MOUNT_S = 20


class NoSmallDisk(Exception):
    """No small file system can be had here; the text says why. Skip, and print it."""


class SmallDisk:
    """A tmpfs of ``size_bytes`` mounted at ``path``. A context manager: mounted inside, unmounted in any case after.

    End the processes that use it first; what is still open keeps the memory until it is closed.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path.absolute()
        self.size_bytes = size_bytes

    def mount(self) -> "SmallDisk":
        """Mount it, empty.

        Raises:
            NoSmallDisk: not root, no `mount`, or the kernel says no.
        """
        program = shutil.which("mount")
        if os.geteuid() != 0 or program is None:
            raise NoSmallDisk("mounting a tmpfs needs root" if program else "there is no `mount` here")
        self.path.mkdir(parents=True, exist_ok=True)
        options = f"size={self.size_bytes},mode=0700,nosuid,nodev"
        command = [program, "-t", "tmpfs", "-o", options, "drift-small-disk", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MOUNT_S)
        if done.returncode != 0:
            raise NoSmallDisk(f"the kernel lets no tmpfs be mounted: {' '.join(done.stderr.split())}")
        return self

    def unmount(self) -> None:
        """Unmount it; what was on it is gone. Nothing happens if it is not mounted."""
        if not self.path.is_mount():
            return
        # Lazily: it vanishes from the tree at once, even if a process that is just ending has a file open.
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, capture_output=True, timeout=_MOUNT_S)

    @property
    def free_bytes(self) -> int:
        """Return the bytes that can still be written."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def fill(self, leave_bytes: int = 0) -> int:
        """Take all free space but ``leave_bytes`` with a file of ballast; return the bytes taken.

        Call it again if others have freed space meanwhile.
        """
        taken = 0
        with (self.path / _BALLAST).open("ab", buffering=0) as ballast:
            while (room := self.free_bytes - leave_bytes) > 0:
                try:
                    taken += ballast.write(bytes(min(room, _BLOCK_BYTES)))
                except OSError:  # somebody else took the last bytes
                    break
        return taken

    def free(self) -> None:
        """Give the ballast back."""
        (self.path / _BALLAST).unlink(missing_ok=True)

    def __enter__(self) -> "SmallDisk":
        return self.mount()

    def __exit__(self, *_: object) -> None:
        self.unmount()
