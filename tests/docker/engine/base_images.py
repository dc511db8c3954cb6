"""Stand-ins for the images that docker/ builds on, for an engine that reaches no registry of images:

    python -m tests.docker.engine.base_images iro-base-python iro-base-postgres

The first is Debian by debootstrap with the Python that runs this script, the second adds Debian's PostgreSQL and starts
it as the official image does. It takes root. PYTHON_IMAGE and POSTGRES_IMAGE then name them to a build.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SUITE = "trixie"
# What Python's extension modules are linked to, and what pip needs.
LIBRARIES = (
    "ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8t64,libsqlite3-0,libssl3t64,"
    "libuuid1,netbase,tzdata,zlib1g"
)
CLEAN = 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; APT::Keep-Downloaded-Packages "false";\n'
NOT_COPIED = shutil.ignore_patterns("__pycache__", "test", "tests", "idlelib", "turtledemo", "*.a", "share")


def make_python_image(name: str, mirror: str, files: Path | None, workspace: Path) -> None:
    """Import Debian with this script's Python in /usr/local as image ``name``; ``files`` are copied over its root."""
    root = workspace / "root"
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={LIBRARIES}", SUITE, str(root), mirror]
    subprocess.run(bootstrap, check=True, stdout=subprocess.DEVNULL)
    copy_python(root / "usr" / "local")
    if files:
        shutil.copytree(files, root, dirs_exist_ok=True)
    # As in the official images: apt keeps neither packages nor its caches.
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
    for path in (root / "var/cache/apt").rglob("*"):
        if path.is_file():
            path.unlink()
    shutil.rmtree(root / "var/lib/apt/lists")
    subprocess.run(["chroot", root, "ldconfig"], check=True)
    path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    with subprocess.Popen(["tar", "-C", root, "--one-file-system", "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(["docker", "import", "--change", path, "-", name], stdin=tar.stdout, check=True)


def copy_python(target: Path) -> None:
    """Copy the installation of this Python, with pip alone of its packages."""
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr"):
        raise SystemExit("run this by a Python of its own folder, not by Debian's, whose files are spread over /usr")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path("lib") / version
    shutil.copytree(prefix / library, target / library, ignore=lambda folder, names: unwanted(folder, names))
    for pip in (prefix / library / "site-packages").glob("pip*"):
        shutil.copytree(pip, target / library / "site-packages" / pip.name, ignore=NOT_COPIED)
    for shared in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, target / "lib" / shared.name, follow_symlinks=False)
    (target / "bin").mkdir(exist_ok=True)
    shutil.copy2(prefix / "bin" / version, target / "bin" / version)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(version)


def unwanted(folder: str, names: list[str]) -> set[str]:
    return {*NOT_COPIED(folder, names), *(names if Path(folder).name == "site-packages" else [])}


def make_postgres_image(name: str, python_image: str, network: str) -> None:
    command = ["docker", "build", "--network", network, "--build-arg", f"DEBIAN_IMAGE={python_image}", "--tag", name]
    subprocess.run([*command, "--file", str(HERE / "postgres.Dockerfile"), str(HERE)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python_image", help="the name of the first image")
    parser.add_argument("postgres_image", help="the name of the second image")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian's packages")
    parser.add_argument("--files", type=Path, help="copied over the root, such as certificates or apt's configuration")
    parser.add_argument("--network", default="default", help="of the build, such as host")
    parser.add_argument("--workspace", type=Path, help="a folder with 1 GB free; the system's temporary one without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.workspace) as folder:
        make_python_image(arguments.python_image, arguments.mirror, arguments.files, Path(folder))
    make_postgres_image(arguments.postgres_image, arguments.python_image, arguments.network)


if __name__ == "__main__":
    main()
