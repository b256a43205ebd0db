"""The versions that sgtm claims to support: ``nox`` runs the tests with the oldest and the newest of them.

pipx run nox -s "tests(oldest)" -- src/sgtm/train
"""

from pathlib import Path

import nox

VERSIONS = {
    "oldest": ("torch==2.11.0", "transformers==5.15.0", "accelerate==1.15.0", "datasets==4.7.0", "tyro==1.0.10"),
    "newest": ("torch==2.13.0", "transformers>=5.15,<6"),
}
nox.options.sessions = ["tests", "wheel"]


@nox.session
@nox.parametrize("versions", [nox.param(pins, id=name) for name, pins in VERSIONS.items()])
def tests(session: nox.Session, versions: tuple[str, ...]) -> None:
    """The fast tests, or those that are named behind --."""
    session.install(versions[0])  # first, where a CPU build is on offer an unpinned torch would pull another one
    session.install("-e", ".[data,plot,dev]", *versions)
    session.run("python", "-m", "pytest", "-q", "-n", "auto", "-m", "not slow", *(session.posargs or ["src"]))


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel installs into an empty environment, and the demo runs from it without a checkout."""
    session.install("build")
    folder = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder))
    (built,) = folder.glob("*.whl")
    session.install("torch==2.13.0")
    session.install(f"sgtm[data,plot] @ {built.as_uri()}")
    session.chdir(session.create_tmp())
    session.run("sgtm", "env")
    session.run("sgtm", "sweep", "configs/sweeps/tinystories/recipes-cpu.yaml", "--status")  # of the wheel
    session.run("sgtm", "demo", "--steps", "20")
