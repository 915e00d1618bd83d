"""Where the Hydra configuration, the sweeps and the papers' values live."""

from pathlib import Path


def conf_dir() -> Path:
    """The absolute folder of the Hydra config groups: inside an installed wheel, or at the top of a checkout."""
    return _shipped("conf")


def sweeps_dir() -> Path:
    """The absolute folder of the sweeps, one YAML for each published table or figure."""
    return _shipped("sweeps")


def papers_dir() -> Path:
    """The absolute folder of the values that the papers print, one CSV a paper."""
    return _shipped("papers")


def _shipped(name: str) -> Path:
    packaged = Path(__file__).resolve().parent / name
    return packaged if packaged.is_dir() else packaged.parents[2] / name
