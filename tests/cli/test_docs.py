"""Every setting that docs/cola.md names for an experiment of the paper makes a method, with knots that can be tied."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate

from lorachains.config import conf_dir
from lorachains.methods import Method
from tests.runs import language_model

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "cola.md").read_text()
BEGINNING = shlex.split(re.findall(r"^python -m lorachains\.train -m (.*)$", TEXT, re.MULTILINE)[0])
ROWS = re.findall(r"^\|[^|]*\|[^|]*\| `(method=[^`]*)` \|$", TEXT, re.MULTILINE)
PER_EPOCH, EPOCHS = 125, 5
"""Optimizer steps of 1000 rows, 8 a batch."""


def choices(line: str) -> list[list[str]]:
    """The jobs of a multirun, but not all combinations: the first values of all settings, then the second ones, …"""
    parsed = OverridesParser.create().parse_overrides(shlex.split(line))
    values = [
        [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in parsed
    ]
    return [[of[i % len(of)] for of in values] for i in range(max(map(len, values)))]


def test_the_table_is_read() -> None:
    assert len(ROWS) == TEXT.count("| `method=") >= 15


@pytest.mark.parametrize("row", ROWS)
def test_each_setting_makes_a_method(row: str) -> None:
    beginning = [override for override in BEGINNING if not override.startswith("seed=")]
    for overrides in choices(row):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", overrides=[o for o in (*beginning, *overrides) if "launcher" not in o])
        method = instantiate(cfg.method, base=language_model("opt"))
        assert isinstance(method, Method)
        links = instantiate(cfg.knots).plan(PER_EPOCH * EPOCHS, PER_EPOCH)
        told = dict(o.split("=", 1) for o in overrides)
        if "knots.links" in told:
            assert len(links) + 1 == int(told["knots.links"])
        if "knots.epochs" in told:
            assert links == [3 * PER_EPOCH]
