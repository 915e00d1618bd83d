"""Where the Hydra configuration lives."""

from pathlib import Path


def conf_dir() -> Path:
    """The absolute folder of the Hydra config groups: inside an installed wheel, or at the top of a checkout."""
    packaged = Path(__file__).resolve().parent / "conf"
    return packaged if packaged.is_dir() else packaged.parents[2] / "conf"
