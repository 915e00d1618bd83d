import runpy
import shutil
from pathlib import Path

from lorachains import config


def test_checkout_has_its_own_conf() -> None:
    assert config.conf_dir() == Path(__file__).resolve().parents[1] / "conf"


def test_installed_package_carries_conf(tmp_path: Path) -> None:
    """As laid out in the wheel: conf/ inside the package."""
    (tmp_path / "lorachains" / "conf").mkdir(parents=True)
    module = shutil.copy(config.__file__, tmp_path / "lorachains")
    assert runpy.run_path(str(module))["conf_dir"]() == tmp_path / "lorachains" / "conf"
