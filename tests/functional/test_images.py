"""The image store, with the real qemu-img: what is added is whole, and becomes current at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hosts.drivers.base import DiskInfo
from hosts.drivers.command import Credentials
from hosts.drivers.disks import QemuImg
from hosts.images import Image, ImageStore
from schemas.errors import DiskError, HostError, ImageError
from schemas.plan import Disk
from tests.small_disk import fill, small_disk

TOOL = QemuImg(Credentials(os.geteuid(), os.getegid()))
NAME = "seed"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return store_in(tmp_path / "state")


def store_in(state_dir: Path) -> ImageStore:
    return ImageStore(state_dir / "images", state_dir / "disks", TOOL)


def an_image(path: Path, *, content: bytes = b"1", image_format: str = "qcow2") -> Path:
    raw = path.with_suffix(".source")
    raw.write_bytes(content.ljust(1 << 20, b"\0"))
    qemu_img("convert", "-f", "raw", "-O", image_format, raw, path)
    return path


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, timeout=60, stdout=subprocess.DEVNULL)


def a_disk(state_dir: Path) -> Disk:
    """The seed's disk of an environment that is told to use NAME."""
    base = state_dir / "images" / NAME / "current"
    return Disk(path=state_dir / "disks" / "seed_1.qcow2", size_gib=1, format="qcow2", base=base)


def current(store: ImageStore) -> Image:
    [found] = [image for image in store.images() if image.current]
    return found


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below `folder`, but for the lock."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.name != ".lock" and (path.is_symlink() or path.is_file())
    }


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_added_image_is_current_and_new_disks_are_made_on_it(
    store: ImageStore, tmp_path: Path, image_format: str
) -> None:
    source = an_image(tmp_path / "image", image_format=image_format)
    added = store.add(NAME, source)
    assert (added.format, added.virtual_size, added.current) == (image_format, 1 << 20, True)
    assert added.path.read_bytes() == source.read_bytes()
    disk = a_disk(tmp_path / "state")
    TOOL.make_fresh(disk)
    made = TOOL.inspect(disk.path)
    assert made
    assert (made.backing, made.backing_format) == (added.path, image_format)


def test_older_image_stays_until_nothing_is_made_on_it(store: ImageStore, tmp_path: Path) -> None:
    older = store.add(NAME, an_image(tmp_path / "a", content=b"1"))
    disk = a_disk(tmp_path / "state")
    TOOL.make_fresh(disk)
    newer = store.add(NAME, an_image(tmp_path / "b", content=b"2"))
    assert [(one.digest, one.current, one.used_by) for one in store.images()] == [
        (older.digest, False, ("seed_1.qcow2",)),
        (newer.digest, True, ()),
    ]
    with pytest.raises(ImageError, match=r"seed_1.qcow2 made on it"):
        store.remove(NAME, older.digest)
    TOOL.make_fresh(disk)
    store.remove(NAME, older.digest[:4])
    assert [one.digest for one in store.images()] == [newer.digest]
    with pytest.raises(ImageError, match="is the current one"):
        store.remove(NAME, newer.digest)


def test_an_older_image_can_be_made_current_again(store: ImageStore, tmp_path: Path) -> None:
    older = store.add(NAME, an_image(tmp_path / "a", content=b"1"))
    store.add(NAME, an_image(tmp_path / "b", content=b"2"))
    assert store.use(NAME, older.digest[:8]).current
    assert current(store).digest == older.digest
    with pytest.raises(ImageError, match="says too little"):
        store.use(NAME, older.digest[:3])
    with pytest.raises(ImageError, match="is not there"):
        store.use("other", older.digest)


def cut_short(path: Path) -> None:
    an_image(path)
    os.truncate(path, path.stat().st_size // 2)


def with_leaks(path: Path) -> None:
    """A reference count that says that a cluster in use is free."""
    an_image(path)
    with path.open("r+b") as file:
        file.seek(48)  # refcount_table_offset, in QEMU's docs/interop/qcow2.txt
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        file.write(b"\0" * 16)


def on_another(path: Path) -> None:
    base = an_image(path.with_name("base"))
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", path)


def in_another_format(path: Path) -> None:
    an_image(path, image_format="vmdk")


def no_disk(path: Path) -> None:
    path.write_text("not an image\n")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def a_directory(path: Path) -> None:
    path.mkdir()


BROKEN = (cut_short, with_leaks, on_another, in_another_format, no_disk, nothing, a_directory)


@pytest.mark.parametrize("break_it", BROKEN)
def test_an_image_that_is_no_good_changes_nothing(
    store: ImageStore, tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    store.add(NAME, an_image(tmp_path / "good"))
    before = snapshot(tmp_path / "state")
    break_it(tmp_path / "bad")
    with pytest.raises((ImageError, DiskError)):
        store.add(NAME, tmp_path / "bad")
    with pytest.raises((ImageError, DiskError)):
        store.add("other", tmp_path / "bad")
    assert snapshot(tmp_path / "state") == before
    assert not (tmp_path / "state" / "images" / "other").exists()


def test_an_image_that_fails_its_trial_changes_nothing(store: ImageStore, tmp_path: Path) -> None:
    store.add(NAME, an_image(tmp_path / "good"))
    before = snapshot(tmp_path / "state")

    def fail(path: Path, info: DiskInfo) -> None:
        assert (path.is_file(), info.format) == (True, "qcow2")
        raise ImageError(str(path), "does not boot")

    with pytest.raises(ImageError, match="does not boot"):
        store.add(NAME, an_image(tmp_path / "other", content=b"2"), fail)
    assert snapshot(tmp_path / "state") == before


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(os.urandom(4 << 20))
    with small_disk(tmp_path, kib=3072) as disk:
        store = store_in(disk)
        good = store.add(NAME, an_image(tmp_path / "good"))
        fill(disk)
        with pytest.raises(HostError, match="that stay free"):
            store.add(NAME, source)
        assert current(store) == good
        assert len(store.images()) == 1


def test_what_a_killed_command_has_left_is_swept(store: ImageStore, tmp_path: Path) -> None:
    store.add(NAME, an_image(tmp_path / "a"))
    left = tmp_path / "state" / "images" / NAME / ".incoming-1"
    left.write_text("half an image")
    store.add(NAME, an_image(tmp_path / "b", content=b"2"))
    assert not left.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "Seed", "seed.qcow2", "x" * 65])
def test_a_name_is_no_path(store: ImageStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="is no name"):
        store.add(name, an_image(tmp_path / "image"))


def test_the_commands_add_list_use_and_remove(tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text(
        f'[host]\nstate_dir = "{tmp_path / "state"}"\n'
        f'[environments.seed]\nimage = "{NAME}"\n[health]\nmin_free_gib = 0\n'
    )

    def type_command(*words: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("testenv-host")
        command = [str(program), "--config", str(config), "image", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    first, second = an_image(tmp_path / "a"), an_image(tmp_path / "b", content=b"2")
    assert type_command("add", str(first)).stdout.endswith("is current\n")
    assert type_command("add", str(second)).returncode == 0
    listed = json.loads(type_command("list", "--json").stdout)
    assert [one["current"] for one in listed] == [False, True]
    assert type_command("use", NAME, listed[0]["digest"]).returncode == 0
    assert type_command("remove", NAME, listed[0]["digest"], "--yes").returncode == 1
    assert type_command("remove", NAME, listed[1]["digest"], "--yes").returncode == 0
    assert listed[1]["digest"][:12] not in type_command("list").stdout
    refused = type_command("add", str(tmp_path / "none"))
    assert refused.returncode == 1
    assert refused.stderr == (
        f"testenv-host: image {tmp_path / 'none'}: No such file or directory\n"
    )
