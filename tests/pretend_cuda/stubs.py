"""Two small C++ libraries, built on first use, that make a CPU build of torch accept the device type CUDA.

Nothing here imports torch: the libraries are loaded before torch registers its devices.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("guard", "hooks")
COMPILERS = ("g++", "c++", "clang++")


def torch_folder() -> Path:
    """Where torch lies, without importing it."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def why_not() -> str | None:
    """Why no pretend GPU can be had here, or ``None``."""
    if sys.platform != "linux":
        return "the pretend GPU is built for Linux"
    if (torch_folder() / "lib" / "libtorch_cuda.so").exists():
        return "this torch is built for CUDA: the pretend GPU needs a CPU build"
    try:
        build()
    except RuntimeError as error:
        return str(error)
    return None


def build() -> Path:
    """The folder with both libraries, built where they are missing.

    Raises:
        RuntimeError: There is no compiler, or it fails.
    """
    sources = [HERE / f"{name}.cpp" for name in NAMES]
    known = "".join(source.read_text("utf-8") for source in sources) + importlib.metadata.version("torch")
    name = "sinklens-pretend-cuda-" + hashlib.sha256((known + sys.version).encode()).hexdigest()[:12]
    folder = _cache() / name
    if all((folder / f"{name}.so").exists() for name in NAMES):
        return folder
    compiler = next((path for each in (os.environ.get("CXX"), *COMPILERS) if each and (path := shutil.which(each))), "")
    if not compiler:
        raise RuntimeError(f"no C++ compiler for the pretend GPU ({', '.join(COMPILERS)})")
    torch = torch_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        part = folder / f"{source.stem}.{os.getpid()}.part"
        options = ["-shared", "-fPIC", "-std=c++20", "-O1", f"-I{torch / 'include'}", f"-L{torch / 'lib'}"]
        command = [compiler, *options, str(source), "-o", str(part), "-ltorch_cpu", "-lc10"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot build the pretend GPU: {done.stderr.strip()[-400:]}")
        part.replace(folder / f"{source.stem}.so")  # two processes may build at once; each leaves a whole file
    return folder


def preload(devices: int) -> ctypes.CDLL:
    """Load both libraries; called before torch is imported, and once more for the guard after it."""
    assert "torch" not in sys.modules, "the pretend GPU comes before torch"
    os.environ["PRETEND_CUDA_DEVICES"] = str(devices)
    folder, lib = build(), torch_folder() / "lib"
    for path in [*sorted(lib.glob("libgomp*.so*")), lib / "libc10.so", lib / "libtorch_cpu.so"]:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    guard = ctypes.CDLL(str(folder / "guard.so"))
    guard.pretend_install(devices)
    ctypes.CDLL(str(folder / "hooks.so"), mode=ctypes.RTLD_GLOBAL)
    return guard


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        Path(home).mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return Path(home)
    except OSError:
        pass
    return Path(tempfile.gettempdir())
