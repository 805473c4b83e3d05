"""Where a dataset lies: read-only places and file systems on which a ring cannot keep its promises; the boot."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format import filesystem
from roboreel.format.filesystem import filesystem_type
from roboreel.format.lock import parse_boot_id
from roboreel.store import verify
from tests.recordings import CAMERA, made, numbers_of, recording

MOUNTS = r"""
22 28 0:21 / /proc rw,nosuid shared:14 - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 28 0:50 /export /mnt/nas rw,relatime shared:7 master:2 - nfs4 nas:/export rw,vers=4.2
41 40 0:51 / /mnt/nas/local rw - xfs /dev/sdb rw
42 28 0:52 / /mnt/with\040space rw - fuse.sshfs host:/ rw,user_id=0
43 28 0:53 / /mnt/over rw - nfs nas:/old rw
44 28 0:54 / /mnt/over rw - tmpfs tmpfs rw
45 28 0:55 / /mnt/ntfs rw - fuseblk /dev/sdc1 rw
not a line of mountinfo
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/ring", "ext4"),
        ("/mnt/nas/ring", "nfs4"),
        ("/mnt/nas", "nfs4"),
        ("/mnt/nas2", "ext4"),
        ("/mnt/nas/local/ring", "xfs"),
        ("/mnt/with space/ring", "fuse.sshfs"),
        ("/mnt/over/ring", "tmpfs"),
        ("/mnt/ntfs", "fuseblk"),
    ],
)
def test_the_innermost_and_last_mount_counts(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == kind


def test_without_mounts_nothing_is_known() -> None:
    assert filesystem_type(Path("/home"), "") is None


def mounted(monkeypatch: pytest.MonkeyPatch, place: Path, kind: str) -> None:
    line = f"28 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 28 0:50 / {place.resolve()} rw - {kind} somewhere rw\n"
    monkeypatch.setattr(filesystem, "read_mountinfo", lambda: line)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "fuse", "fuse.sshfs", "fuseblk"])
def test_rings_on_nfs_and_fuse_are_refused_and_all_else_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made(tmp_path / "ring", [3], buffer_capacity=8, use_as_fifo_buffer=True).close()
    mounted(monkeypatch, tmp_path, kind)
    for readonly in (False, True):
        with pytest.raises(roboreel.InvalidArgumentError, match=f"is on {kind}, and a ring .* put it on a local disk"):
            LeRobotDatasetV2(tmp_path / "ring", readonly=readonly)
    with pytest.raises(roboreel.InvalidArgumentError, match=f"is on {kind}"):
        LeRobotDatasetV2(tmp_path / "new", 10, 8, use_as_fifo_buffer=True)
    assert not (tmp_path / "new").exists()
    assert numbers_of(made(tmp_path / "fixed", [3], buffer_capacity=8)[2]) == 2
    mounted(monkeypatch, tmp_path, "xfs")
    assert numbers_of(LeRobotDatasetV2(tmp_path / "ring")[2]) == 2


def read_all(root: Path, frames: int) -> None:
    dataset = LeRobotDatasetV2(root, readonly=True, delta_timestamps={"action": [-0.1, 0]}, image_dtype="uint8")
    assert dataset.get_batch(range(frames))["index"].tolist() == list(range(frames))
    assert dataset.get_episode(0)[CAMERA].shape[0] == 3
    assert dataset.num_episodes == 2
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    with pytest.raises(roboreel.ReadOnlyError, match="readonly=True"):
        dataset.add_episodes(recording(2, frames, camera=True))
    dataset.close()


@pytest.fixture
def readonly_mount() -> Iterator[Path]:
    """A tmpfs that the test fills while it can be written to."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    place = Path(tempfile.mkdtemp())
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        place.rmdir()
        pytest.skip(f"this machine lets nobody mount: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)  # a pool of decoders keeps its files open
        place.rmdir()


@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
def test_a_dataset_on_a_read_only_file_system_is_read(readonly_mount: Path, mode: str) -> None:
    root = readonly_mount / "dataset"
    made(root, [3, 2], camera=True, image_mode=mode).close()
    subprocess.run(["mount", "-o", "remount,ro", readonly_mount], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (root / "probe").touch()
    read_all(root, 5)
    with pytest.raises(roboreel.StorageError, match="Read-only file system"):
        LeRobotDatasetV2(root).add_episodes(recording(2, 5, camera=True))
    read_all(root, 5)


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """A directory, and no rights of root in this test, which would overrule permissions."""
    place = Path(tempfile.mkdtemp())
    for mode in ("png", "video"):  # what is imported at its first use may lie where only root can read
        root = place / mode
        made(root, [3, 2], camera=True, image_mode=mode).close()
        read_all(root, 5)
        LeRobotDatasetV2(root, readonly=True).snapshot(place / "copy")
        verify(root)
        shutil.rmtree(place / "copy")
        shutil.rmtree(root)
    if os.geteuid() == 0:
        os.chown(place, 65534, -1)
        os.seteuid(65534)
    try:
        yield place
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in (place, *place.rglob("*")):
            path.chmod(0o700)
        shutil.rmtree(place)


@pytest.mark.parametrize("with_lock", [True, False])
def test_reading_needs_no_permission_to_write_and_no_lock(unprivileged: Path, with_lock: bool) -> None:
    root = unprivileged / "dataset"
    made(root, [3, 2], camera=True, image_mode="png").close()
    if not with_lock:
        (root / "writer.lock").unlink()
        (root / "writer.json").unlink(missing_ok=True)
    for path in (*root.rglob("*"), root):
        path.chmod(0o500 if path.is_dir() else 0o400)
    with pytest.raises(PermissionError):
        (root / "probe").touch()
    read_all(root, 5)
    assert (root / "writer.lock").exists() == with_lock


@pytest.mark.parametrize("mode", ["png", "video"])
def test_what_another_user_may_not_read_is_an_error_of_ours(unprivileged: Path, mode: str) -> None:
    root, place = unprivileged / "dataset", unprivileged / "place"
    made(root, [2], camera=True, image_mode=mode).close()
    looks: list[Callable[[], Any]] = [
        lambda: LeRobotDatasetV2(root, readonly=True)[1],
        lambda: LeRobotDatasetV2(root, readonly=True).get_episode(0),
        lambda: LeRobotDatasetV2(root, readonly=True).snapshot(place),
        lambda: LeRobotDatasetV2.check_storage_dir_integrity(root),
        lambda: LeRobotDatasetV2(root).edit("action").__enter__(),
        lambda: verify(root),
    ]
    for path in (root, *root.rglob("*")):
        if path.name == "writer.lock":
            continue
        mode_before, refused = path.stat().st_mode, 0
        path.chmod(0)
        for look in looks:
            try:
                look()
            except roboreel.RoboreelError:
                refused += 1
        refused += bool(verify(root).problems)
        path.chmod(mode_before)
        assert refused > 0, path
    shutil.rmtree(place, ignore_errors=True)


def test_the_boot_is_told_by_a_uuid_of_either_system() -> None:
    linux, macos = "5e7fb09b-ab33-4f0a-9c5c-7d4b8bd4e2a1\n", "5E7FB09B-AB33-4F0A-9C5C-7D4B8BD4E2A1"
    assert parse_boot_id(linux) == parse_boot_id(macos) == bytes.fromhex(linux.strip().replace("-", ""))
    for text in ("", "unknown oid", "5e7fb09b"):
        assert parse_boot_id(text) == bytes(16)
