"""Download of OG-MARL's vaults from the Hugging Face hub: a zip file, checked before unpacking."""

import importlib
import logging
import shutil
import stat
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from coda_jax.data.vault_files import METADATA
from experiments.host.errors import UserError

REPOSITORY = "InstaDeepAI/og-marl"

_NAME_CLASHES = (FileExistsError, NotADirectoryError, IsADirectoryError)
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, *_NAME_CLASHES)
"""Exceptions from unpacking a damaged zip; zipfile raises `NotImplementedError` for an unknown compression."""

Fetch = Callable[..., str]
"""`huggingface_hub.hf_hub_download`: downloads a file of a repository and returns its path."""


def download_vaults(environment: str, scenario: str, folder: Path, fetch: Fetch | None = None) -> Path:
    """Downloads the vaults of a scenario, unless they exist.

    An interrupted download is resumed. The `.vlt` folder is created atomically.

    Args:
        environment: environment, such as `gymnasium_mamujoco`.
        scenario: scenario, such as `2halfcheetah`.
        folder: parent folder of `{environment}/{scenario}.vlt`.
        fetch: download function with the arguments of `huggingface_hub.hf_hub_download`, which is the default.

    Returns:
        The `.vlt` folder.

    Raises:
        UserError: the extra is not installed; the hub is unreachable or lacks the file; the zip is damaged, contains
            anything but one folder of vaults, or does not fit on the disk.
    """
    target = folder / environment / f"{scenario}.vlt"
    if target.exists():
        return target
    unfinished = folder / f".{environment}-{scenario}.download"
    archive = _fetch(f"core/{environment}/{scenario}.zip", unfinished, fetch or _hub())
    target.parent.mkdir(parents=True, exist_ok=True)
    unpacked = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        unpack(archive, unpacked)
        _vault_folder(unpacked, target.name, archive).rename(target)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    shutil.rmtree(unfinished)
    return target


def _hub() -> Fetch:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        return importlib.import_module("huggingface_hub").hf_hub_download
    except ImportError as error:
        raise UserError("downloading needs the extra `data`: pip install 'coda-jax[data]'") from error


def _fetch(file: str, folder: Path, fetch: Fetch) -> Path:
    try:
        return Path(fetch(repo_id=REPOSITORY, repo_type="dataset", filename=file, local_dir=str(folder)))
    except Exception as error:  # the hub's client raises exceptions of several libraries
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"cannot download {file} from the hub's {REPOSITORY} ({reason[:200]}); check the name and the network, "
            "then give the same command to go on"
        ) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip into a new folder; refuses it unless all members are plain files and folders inside.

    Raises:
        UserError: the zip is damaged or encrypted, a member is a link or would lie outside the folder, or the disk has
            too little space.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                _check_member(archive, member)
            size = sum(member.file_size for member in members)
            free = shutil.disk_usage(folder.parent).free
            if size > free:
                raise UserError(f"{archive} needs {size / 1e9:.1f} GB unpacked, {folder.parent} has {free / 1e9:.1f}")
            opened.extractall(folder)
    except _DAMAGE as error:
        raise UserError(f"{archive} is damaged ({error}); delete it and download it again") from error


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PureWindowsPath(member.filename)  # handles both kinds of slashes, and drives
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.anchor or ".." in path.parts:
        raise UserError(f"{archive} is not unpacked: its member {member.filename!r} would lie outside the folder")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{archive} is not unpacked: its member {member.filename!r} is a link or a device")
    if member.flag_bits & 1:
        raise UserError(f"{archive} is not unpacked: its member {member.filename!r} is encrypted")


def _vault_folder(unpacked: Path, name: str, archive: Path) -> Path:
    """The folder with the vaults below the unpacked one: the top, or some folders below."""
    vaults = {metadata.parent for metadata in unpacked.rglob(METADATA)}
    parents = {vault.parent for vault in vaults}
    if not vaults or len(parents) != 1:
        found = "no vault" if not vaults else "vaults in several folders"
        raise UserError(f"{archive} holds {found}, where the vaults of {name} were expected")
    return parents.pop()
