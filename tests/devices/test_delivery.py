"""The store on a device: what is copied, what is kept, and what of dead owners is removed."""

import hashlib
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from edgeslim.devices.delivery import Parcel, Store, is_leftover, owner
from edgeslim.devices.transports.local import LocalTransport
from edgeslim.errors import DeviceError
from edgeslim.progress import silent

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(LocalTransport(), str(tmp_path / "root"))


def _parcel(folder: Path, name: str, content: bytes) -> Parcel:
    (folder / name.replace("/", "-")).write_bytes(content)
    return Parcel.of(folder / name.replace("/", "-"), name)


def test_a_parcel_has_the_bytes_and_the_hash_of_its_file(tmp_path: Path) -> None:
    content = bytes(3_000_000)
    counted: list[int] = []
    (tmp_path / "file").write_bytes(content)

    parcel = Parcel.of(tmp_path / "file", "file", counted.append)

    assert (parcel.bytes, parcel.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert sum(counted) == len(content)


def test_files_are_copied_once_and_equal_ones_together(store: Store, tmp_path: Path) -> None:
    parcels = [_parcel(tmp_path, name, content) for name, content in (("a", b"1"), ("b", b"1"), ("c", b"22"))]

    first = store.deliver(parcels, hasher=parcels[0], progress=silent)
    second = store.deliver(parcels, hasher=parcels[0], progress=silent)

    assert (first.copied, first.bytes, first.kept) == (2, 3, 0)
    assert (second.copied, second.bytes, second.kept) == (0, 0, 2)
    assert sorted(path.name for path in Path(store.blobs).iterdir()) == sorted({p.sha256 for p in parcels})


def test_a_blob_of_the_wrong_size_is_copied_again(store: Store, tmp_path: Path) -> None:
    parcel = _parcel(tmp_path, "a", b"whole")
    (Path(store.blobs) / parcel.sha256).write_bytes(b"who")

    assert store.deliver([parcel], hasher=parcel, progress=silent).copied == 1
    assert (Path(store.blobs) / parcel.sha256).read_bytes() == b"whole"


def test_a_file_that_changes_on_its_way_gets_no_name(store: Store, tmp_path: Path) -> None:
    parcel = _parcel(tmp_path, "a", b"before")
    parcel.source.write_bytes(b"after!")

    with pytest.raises(DeviceError, match=r"^local: a did not arrive as it left: its hash is \w{64}"):
        store.deliver([parcel], hasher=parcel, progress=silent)

    assert list(Path(store.blobs).iterdir()) == []


def test_a_run_has_its_files_by_name_and_leaves_no_folder(store: Store, tmp_path: Path) -> None:
    parcels = [_parcel(tmp_path, "x/y/deep", b"1"), _parcel(tmp_path, "it's one", b"2")]
    store.deliver(parcels, hasher=parcels[0], progress=silent)

    with store.run_folder(parcels) as folder:
        assert (Path(folder) / "x/y/deep").read_bytes() == b"1"
        assert (Path(folder) / "it's one").read_bytes() == b"2"

    assert list(Path(store.runs).iterdir()) == []
    assert len(list(Path(store.blobs).iterdir())) == 2


def test_only_what_dead_owners_left_is_removed(store: Store, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    young, old = int(time.time()), int(time.time()) - 100_000
    parcel = _parcel(tmp_path, "a", b"1")
    other = "0" * 8 if HOST != "0" * 8 else "1" * 8
    names = {
        f".x.{HOST}-{dead.pid}-{young}.part": True,
        f".x.{HOST}-{os.getpid()}-{old}.part": True,  # the number of a process that came later
        f".x.{other}-1-{old}.part": True,
        f".x.{other}-1-{young}.part": False,
        f".x.{owner()}.part": False,
        ".x.part": False,
    }
    for name in names:
        (Path(store.blobs) / name).write_bytes(b"half")
    (Path(store.runs) / f"{HOST}-{dead.pid}-{young}").mkdir()
    (Path(store.runs) / owner()).mkdir()

    done = store.deliver([parcel], hasher=parcel, progress=silent)

    left = {path.name for path in Path(store.blobs).iterdir()}
    assert {name: name not in left for name in names} == names
    assert [path.name for path in Path(store.runs).iterdir()] == [owner()]
    assert done.removed == 4


def test_an_owner_that_lives_is_no_leftover() -> None:
    parent = psutil.Process(os.getppid())

    assert not is_leftover(f".x.{HOST}-{parent.pid}-{int(parent.create_time())}.part")
