"""testenv-host image: the base images that environments' disks are made on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from broker.people import confirm, console
from hosts.config import load_config
from hosts.images import Image, ImageStore, Trial
from hosts.options import told_errors
from hosts.plan import images_directory
from schemas.config import HostConfig

_GIB = 1 << 30
_MIB = 1 << 20
_SHOWN = 12
"""Characters of a digest, for people."""


@click.group()
def image() -> None:
    """Keep the base images of this host, by name and digest.

    In the configuration, `image = "NAME"` in [environments.seed] means the current one of that
    name. A disk is made on it at its environment's next turnover.

    \b
    Example:
      testenv-host image add centos-9.qcow2 --name seed
      testenv-host image list
    """


@image.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default="seed", show_default=True, help="What the configuration calls it.")
@click.option(
    "--boot-test",
    "marker",
    metavar="TEXT",
    help="Boot it first, until it says TEXT on its serial console.",
)
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(min=1, max=3600),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="How long --boot-test waits for TEXT.",
)
@click.pass_obj
def add(config_path: Path, file: Path, name: str, marker: str | None, within_s: float) -> None:
    """Copy FILE (qcow2 or raw), check it, and only then make it the current image NAME.

    If anything is wrong with it, nothing is changed.

    \b
    Example:
      testenv-host image add centos-9.qcow2 --name seed --boot-test "login:" --within 300
    """
    with told_errors():
        config = load_config(config_path)
        trial = _boot_test(config, marker, within_s) if marker else None
        added = _store(config).add(name, file, trial)
    click.echo(f"{added.name} {added.digest} is current")


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.pass_obj
def list_images(config_path: Path, as_json: bool) -> None:
    """List all images, which are current, and whose disks are made on them.

    \b
    Example:
      testenv-host image list --json | jq '.[] | select(.current)'
    """
    with told_errors():
        images = _store(load_config(config_path)).images()
    if as_json:
        click.echo(json.dumps([_document(one) for one in images], indent=2))
    elif images:
        _print(images)
    else:
        click.echo("no image yet", err=True)


@image.command()
@click.argument("name")
@click.argument("digest")
@click.pass_obj
def use(config_path: Path, name: str, digest: str) -> None:
    """Make the image NAME whose digest begins with DIGEST the current one.

    \b
    Example:
      testenv-host image use seed 9f86d081
    """
    with told_errors():
        chosen = _store(load_config(config_path)).use(name, digest)
    click.echo(f"{chosen.name} {chosen.digest} is current")


@image.command()
@click.argument("name")
@click.argument("digest")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(config_path: Path, name: str, digest: str, yes: bool) -> None:
    """Remove the image NAME whose digest begins with DIGEST, unless it is current or used.

    \b
    Example:
      testenv-host image remove seed 9f86d081 --yes
    """
    with told_errors():
        store = _store(load_config(config_path))
        click.echo(f"image {name} {digest} will be removed", err=True)
        confirm(yes)
        removed = store.remove(name, digest)
    click.echo(f"{removed.name} {removed.digest} is removed")


def _store(config: HostConfig) -> ImageStore:
    from hosts.drivers.command import Credentials
    from hosts.drivers.disks import QemuImg

    state_dir = config.host.state_dir
    ourselves = Credentials(os.geteuid(), os.getegid())
    return ImageStore(
        images_directory(state_dir),
        state_dir / "disks",
        QemuImg(ourselves),
        min_free_gib=config.health.min_free_gib,
    )


def _boot_test(config: HostConfig, marker: str, within_s: float) -> Trial:
    from hosts.drivers.connect import boot_test

    return boot_test(config, marker, within_s)


def _document(one: Image) -> dict[str, object]:
    return {
        "name": one.name,
        "digest": one.digest,
        "format": one.format,
        "path": str(one.path),
        "bytes": one.size,
        "virtual_bytes": one.virtual_size,
        "added": one.added.isoformat(timespec="seconds"),
        "current": one.current,
        "used_by": list(one.used_by),
    }


def _print(images: Sequence[Image]) -> None:
    table = Table()
    for column in (
        "name",
        "digest",
        "format",
        "added (UTC)",
        "MiB",
        "GiB for a guest",
        "",
        "used by",
    ):
        table.add_column(column, overflow="fold")
    for one in images:
        table.add_row(
            one.name,
            one.digest[:_SHOWN],
            one.format,
            f"{one.added:%Y-%m-%d %H:%M}",
            f"{one.size / _MIB:.0f}",
            f"{one.virtual_size / _GIB:.2f}",
            "current" if one.current else "",
            " ".join(one.used_by),
        )
    console().print(table)
